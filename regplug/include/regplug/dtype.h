// The dtypes that bundles support, with their names and sizes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "regplug/error.h"

namespace regplug {

enum class Dtype : std::uint8_t { float64, float32, float16, bfloat16, int64, int32, int16, int8, uint8, boolean };

namespace detail {

struct DtypeInfo {
  Dtype dtype;
  const char* stored;  // in a safetensors header
  const char* name;    // in torch and in the manifest
  std::size_t size;    // of one item, in bytes
};

inline constexpr std::array<DtypeInfo, 10> kDtypes{{{Dtype::float64, "F64", "float64", 8},
                                                    {Dtype::float32, "F32", "float32", 4},
                                                    {Dtype::float16, "F16", "float16", 2},
                                                    {Dtype::bfloat16, "BF16", "bfloat16", 2},
                                                    {Dtype::int64, "I64", "int64", 8},
                                                    {Dtype::int32, "I32", "int32", 4},
                                                    {Dtype::int16, "I16", "int16", 2},
                                                    {Dtype::int8, "I8", "int8", 1},
                                                    {Dtype::uint8, "U8", "uint8", 1},
                                                    {Dtype::boolean, "BOOL", "bool", 1}}};

constexpr const DtypeInfo& dtype_info(Dtype dtype) {
  return kDtypes[static_cast<std::size_t>(dtype)];  // in the order of the enumeration
}

}  // namespace detail

constexpr std::size_t item_size(Dtype dtype) { return detail::dtype_info(dtype).size; }

// torch's name of a dtype: "float32".
inline std::string dtype_name(Dtype dtype) { return detail::dtype_info(dtype).name; }

inline std::optional<Dtype> find_dtype(std::string_view name) {
  for (const detail::DtypeInfo& known : detail::kDtypes) {
    if (name == known.name) return known.dtype;
  }
  return std::nullopt;
}

// Throws Error when there is no dtype of this name.
inline Dtype dtype_named(std::string_view name) {
  if (const std::optional<Dtype> found = find_dtype(name)) return *found;
  throw Error("dtype: expected a dtype of safetensors, got " + std::string(name) + ".");
}

}  // namespace regplug
