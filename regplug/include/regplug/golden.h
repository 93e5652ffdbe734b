// Golden cases: what a program must give, and how far off it was. Includes no torch.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "regplug/bundle.h"
#include "regplug/cpu.h"
#include "regplug/error.h"
#include "regplug/manifest.h"
#include "regplug/view.h"

namespace regplug {
namespace detail {

// The half precision of IEEE 754 as a double; every value of it is one.
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

// One item of a floating dtype as a double.
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
      throw Error("dtype: expected a floating one, got " + dtype_name(dtype) + ".");
  }
}

}  // namespace detail

// The input of a case, in the bytes of the bundle; of a slice, the strided view into what is stored.
inline TensorView golden_input(const Bundle& bundle, const GoldenCase& golden) {
  const TensorView stored(bundle.golden().at(golden.name + ".input"));
  return golden.start ? stored.narrow(1, *golden.start, golden.length) : stored;
}

// Largest absolute error over all outputs of a case, compared in float64; NaN where either side has one. The outputs
// have the shapes of the manifest, as those of a loaded program do.
inline double golden_error(const Bundle& bundle, const GoldenCase& golden, const std::vector<TensorView>& outputs) {
  double largest = 0;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const std::string name = golden.name + ".output." + bundle.manifest().outputs.at(i).name;
    const TensorView expected(bundle.golden().at(name));
    if (outputs[i].items() != expected.items()) {
      throw Error(name + ": expected " + expected.signature() + ", got " + outputs[i].signature() + ".");
    }
    const Tensor copied = outputs[i].is_contiguous() ? Tensor() : Tensor::copy_of(outputs[i]);
    const TensorView& got = outputs[i].is_contiguous() ? outputs[i] : copied.view();
    for (std::size_t item = 0; item < static_cast<std::size_t>(expected.items()); ++item) {
      const double wanted = detail::to_double(expected.dtype(), expected.data() + item * item_size(expected.dtype()));
      const double found = detail::to_double(got.dtype(), got.data() + item * item_size(got.dtype()));
      const double error = std::abs(found - wanted);
      if (error != error) return error;
      if (error > largest) largest = error;
    }
  }
  return largest;
}

// Kernels differ between instruction sets: on another one than the exporter's, twice the tolerance is allowed.
inline double golden_tolerance(const Program& program, const GoldenCase& golden, const Manifest& manifest) {
  const bool same = detail::cpu_capability() == manifest.provenance.cpu;
  return (same ? 1 : 2) * program.cases.at(golden.name).tolerance;
}

namespace detail {

// The one case that every loader runs: a program that loads may still compute something else here. `run(input)`
// gives the flat outputs, which own what they show. `object` is "bundle DIR: program 'NAME'".
template <typename Run>
void check_golden(const std::string& object, const Bundle& bundle, Run run) {
  for (const GoldenCase& golden : bundle.manifest().cases) {
    if (golden.name != "batch_1") continue;
    const auto outputs = run(golden_input(bundle, golden));
    const double error = golden_error(bundle, golden, std::vector<TensorView>(outputs.begin(), outputs.end()));
    const double tolerance = golden_tolerance(bundle.program(), golden, bundle.manifest());
    if (!(error <= tolerance)) {  // so that a NaN is never within
      throw Error(object + ": case 'batch_1': error " + number(error) + " is above the tolerance " +
                  number(tolerance) + ".");
    }
    return;
  }
  throw Error(object + ": case 'batch_1': not in the manifest.");
}

}  // namespace detail
}  // namespace regplug
