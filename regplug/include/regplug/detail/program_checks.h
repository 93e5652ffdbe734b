// What every call of a program is held to. The messages are the same for every loader, and nothing is allocated when
// all is well. Includes no torch.
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
[[noreturn]] inline void refuse(const char* program, const std::string& text) {
  throw Error(std::string(program) + ": " + text);
}

[[noreturn]] inline void refuse_input(const char* program, const Signature& wanted, const std::string& least,
                                      const std::string& got) {
  refuse(program, "expected " + wanted.name + " " + word(wanted.shape) + least + ", got " + got + ".");
}

inline void check_shape(const char* program, const Manifest& manifest, const std::int64_t* sizes, std::size_t rank) {
  const Signature& wanted = manifest.input;
  bool fits = rank == wanted.shape.size();
  for (std::size_t i = 0; fits && i < rank; ++i) fits = wanted.shape[i] == kFree || wanted.shape[i] == sizes[i];
  // torch ends the process where a tensor's bytes overflow
  std::int64_t room = std::numeric_limits<std::int64_t>::max() / 8;
  for (std::size_t i = 0; fits && i < rank; ++i) fits = sizes[i] <= 0 || (room /= sizes[i]) > 0;
  if (fits && sizes[0] >= manifest.min_batch && sizes[1] >= manifest.min_tokens) return;
  std::string least;
  if (fits && sizes[0] < manifest.min_batch) {
    least = " with B >= " + std::to_string(manifest.min_batch);
  } else if (fits) {
    least = " with T >= " + std::to_string(manifest.min_tokens);
  }
  refuse_input(program, wanted, least, listed(std::vector<std::int64_t>(sizes, sizes + rank)));
}

[[noreturn]] inline void refuse_dtype(const char* program, const Manifest& manifest, const std::string& got) {
  refuse(program, "expected dtype " + manifest.input.dtype + ", got " + got + ".");
}

// `got` are the signatures of the outputs: "float32 [2, 384]".
[[noreturn]] inline void refuse_outputs(const char* program, const Manifest& manifest, std::int64_t batch,
                                        const std::vector<std::string>& got) {
  std::vector<std::string> wanted;
  for (const Signature& output : manifest.outputs) {
    wanted.push_back(output.dtype + " " + listed(std::vector<std::int64_t>{batch, output.shape[1]}));
  }
  refuse(program, "expected outputs " + listed(wanted) + ", got " + listed(got) + ".");
}

}  // namespace regplug::detail
