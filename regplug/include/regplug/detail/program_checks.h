// The checks of every call of a program, with the same messages in every loader. They allocate nothing when they pass.
// Includes no torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "regplug/error.h"
#include "regplug/manifest.h"

namespace regplug::detail {

// `program` is "program 'NAME'".
[[noreturn]] inline void reject(const char* program, const std::string& text) {
  throw Error(std::string(program) + ": " + text);
}

[[noreturn]] inline void reject_input(const char* program, const TensorSpec& wanted, const std::string& least,
                                      const std::string& got) {
  reject(program, "expected " + wanted.name + " " + format_item(wanted.shape) + least + ", got " + got + ".");
}

inline void check_shape(const char* program, const Manifest& manifest, const std::int64_t* sizes, std::size_t rank) {
  const TensorSpec& wanted = manifest.input;
  bool fits = rank == wanted.shape.size();
  for (std::size_t i = 0; fits && i < rank; ++i) fits = wanted.shape[i] == kFree || wanted.shape[i] == sizes[i];
  // torch ends the process when a tensor's bytes overflow
  std::int64_t room = std::numeric_limits<std::int64_t>::max() / 8;
  for (std::size_t i = 0; fits && i < rank; ++i) fits = sizes[i] <= 0 || (room /= sizes[i]) > 0;
  if (fits && sizes[0] >= manifest.min_batch && sizes[1] >= manifest.min_tokens) return;
  std::string least;
  if (fits && sizes[0] < manifest.min_batch) {
    least = " with B >= " + std::to_string(manifest.min_batch);
  } else if (fits) {
    least = " with T >= " + std::to_string(manifest.min_tokens);
  }
  reject_input(program, wanted, least, format_list(std::vector<std::int64_t>(sizes, sizes + rank)));
}

[[noreturn]] inline void reject_dtype(const char* program, const Manifest& manifest, const std::string& got) {
  reject(program, "expected dtype " + manifest.input.dtype + ", got " + got + ".");
}

// `got` are the signatures of the outputs: "float32 [2, 384]".
[[noreturn]] inline void reject_outputs(const char* program, const Manifest& manifest, std::int64_t batch,
                                        const std::vector<std::string>& got) {
  std::vector<std::string> wanted;
  for (const TensorSpec& output : manifest.outputs) {
    wanted.push_back(output.dtype + " " + format_list(std::vector<std::int64_t>{batch, output.shape[1]}));
  }
  reject(program, "expected outputs " + format_list(wanted) + ", got " + format_list(got) + ".");
}

}  // namespace regplug::detail
