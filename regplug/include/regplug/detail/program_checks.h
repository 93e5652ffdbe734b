// The checks of every call of a program, with the same messages in every loader. They allocate nothing when they pass.
// Includes no torch.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "regplug/detail/mask_rules.h"
#include "regplug/detail/more_inputs.h"
#include "regplug/error.h"
#include "regplug/manifest.h"

namespace regplug::detail {

// `program` is "program 'NAME'".
[[noreturn]] inline void reject(const char* program, const std::string& text) {
  throw Error(std::string(program) + ": " + text);
}

[[noreturn]] inline void reject_names(const char* program, const Manifest& manifest,
                                      const std::vector<std::string>& got) {
  std::vector<std::string> wanted;
  for (std::size_t i = 0; i < manifest.num_inputs(); ++i) wanted.push_back(manifest.input_at(i).name);
  reject(program, "expected inputs " + format_list(wanted) + ", got " + format_list(got) + ".");
}

// For a call with one tensor and no name.
inline void check_single(const char* program, const Manifest& manifest) {
  if (!manifest.more_inputs.empty()) reject_names(program, manifest, {manifest.input.name});
}

// The named inputs in the manifest's order. `Named` has a `name`.
template <typename Named>
std::array<const Named*, kMaxInputs> in_order(const char* program, const Manifest& manifest, const Named* given,
                                              std::size_t count) {
  std::array<const Named*, kMaxInputs> ordered{};
  bool fits = count == manifest.num_inputs();
  for (std::size_t i = 0; fits && i < count; ++i) {
    ordered[i] =
        std::find_if(given, given + count, [&](const Named& one) { return one.name == manifest.input_at(i).name; });
    fits = ordered[i] != given + count;
  }
  if (fits) return ordered;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < count; ++i) names.emplace_back(given[i].name);
  reject_names(program, manifest, names);
}

[[noreturn]] inline void reject_input(const char* program, const TensorSpec& wanted, const std::string& least,
                                      const std::string& got) {
  reject(program, "expected " + wanted.name + " " + format_item(wanted.shape) + least + ", got " + got + ".");
}

// torch ends the process when a tensor's bytes overflow
inline bool bytes_fit(const std::int64_t* sizes, std::size_t rank) {
  std::int64_t room = std::numeric_limits<std::int64_t>::max() / 8;
  bool fits = true;
  for (std::size_t i = 0; fits && i < rank; ++i) fits = sizes[i] <= 0 || (room /= sizes[i]) > 0;
  return fits;
}

// Of the first input.
inline void check_shape(const char* program, const Manifest& manifest, const std::int64_t* sizes, std::size_t rank) {
  const TensorSpec& wanted = manifest.input;
  bool fits = rank == wanted.shape.size();
  for (std::size_t i = 0; fits && i < rank; ++i) fits = wanted.shape[i] == kFree || wanted.shape[i] == sizes[i];
  fits = fits && bytes_fit(sizes, rank);
  if (fits && sizes[0] >= manifest.min_batch && sizes[1] >= manifest.min_tokens) return;
  std::string least;
  if (fits && sizes[0] < manifest.min_batch) {
    least = " with B >= " + std::to_string(manifest.min_batch);
  } else if (fits) {
    least = " with T >= " + std::to_string(manifest.min_tokens);
  }
  reject_input(program, wanted, least, format_list(std::vector<std::int64_t>(sizes, sizes + rank)));
}

// `first` are the sizes of the first input.
[[noreturn]] inline void reject_more_input(const char* program, const TensorSpec& wanted, const std::int64_t* first,
                                           const std::string& got) {
  std::string least = " with B=" + std::to_string(first[0]);
  if (wanted.shape[1] == kFree) least += " and T=" + std::to_string(first[1]);
  reject_input(program, wanted, least, got);
}

// Of a further input: it has the first one's batch, and a mask has its length.
inline void check_more_shape(const char* program, const TensorSpec& wanted, const std::int64_t* first,
                             const std::int64_t* sizes, std::size_t rank) {
  const std::int64_t second = wanted.shape[1] == kFree ? first[1] : wanted.shape[1];
  if (rank == 2 && sizes[0] == first[0] && sizes[1] == second && bytes_fit(sizes, rank)) return;
  reject_more_input(program, wanted, first, format_list(std::vector<std::int64_t>(sizes, sizes + rank)));
}

// What begins the other messages about an input: nothing for the first.
inline std::string label_of(const Manifest& manifest, std::size_t i) {
  return i == 0 ? "" : manifest.input_at(i).name + ": ";
}

[[noreturn]] inline void reject_dtype(const char* program, const Manifest& manifest, std::size_t i,
                                      const std::string& got) {
  reject(program, label_of(manifest, i) + "expected dtype " + manifest.input_at(i).dtype + ", got " + got + ".");
}

// The values of a mask of bool [B, T], whose shape was checked.
inline void check_mask(const char* program, const Manifest& manifest, const MaskBytes& mask) {
  const std::string fault = mask_fault(manifest, mask);
  if (!fault.empty()) reject(program, "mask: " + fault);
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
