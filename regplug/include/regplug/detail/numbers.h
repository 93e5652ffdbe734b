// Items of the floating-point dtypes as doubles. Includes no torch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "regplug/dtype.h"
#include "regplug/error.h"

namespace regplug::detail {

// IEEE 754 half precision as a double, which is exact.
inline double from_half(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  double value = std::ldexp(fraction + (exponent == 0 ? 0 : 1024), (exponent == 0 ? 1 : exponent) - 25);
  if (exponent == 31) value = fraction == 0 ? HUGE_VAL : std::nan("");
  return (bits >> 15) != 0 ? -value : value;
}

template <typename Stored>
Stored item(const char* place) {
  Stored value;
  std::memcpy(&value, place, sizeof value);
  return value;
}

inline double to_double(Dtype dtype, const char* place) {
  switch (dtype) {
    case Dtype::float64:
      return item<double>(place);
    case Dtype::float32:
      return static_cast<double>(item<float>(place));
    case Dtype::float16:
      return from_half(item<std::uint16_t>(place));
    case Dtype::bfloat16: {  // the upper half of a float
      const std::uint32_t bits = std::uint32_t{item<std::uint16_t>(place)} << 16;
      float value = 0;
      std::memcpy(&value, &bits, sizeof value);
      return static_cast<double>(value);
    }
    default:
      throw Error("dtype: expected a floating-point dtype, got " + dtype_name(dtype) + ".");
  }
}

// The distance from 1 to the next number of a floating-point dtype.
inline double epsilon(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64:
      return std::numeric_limits<double>::epsilon();
    case Dtype::float32:
      return static_cast<double>(std::numeric_limits<float>::epsilon());
    case Dtype::float16:
      return std::ldexp(1.0, -10);
    case Dtype::bfloat16:
      return std::ldexp(1.0, -7);
    default:
      throw Error("dtype: expected a floating-point dtype, got " + dtype_name(dtype) + ".");
  }
}

}  // namespace regplug::detail
