// Golden cases: expected outputs, and the error of a program. Includes no torch.
#pragma once

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "regplug/bundle.h"
#include "regplug/detail/cpu.h"
#include "regplug/detail/numbers.h"
#include "regplug/error.h"
#include "regplug/inputs.h"
#include "regplug/manifest.h"
#include "regplug/tensor.h"

namespace regplug {

// The first input of a case, in the bytes of the bundle. For a slice this is a strided view of the stored input.
inline TensorView golden_input(const Bundle& bundle, const GoldenCase& golden) {
  const TensorView stored(bundle.golden().at(golden.name + ".input"));
  return golden.start ? stored.narrow(1, *golden.start, golden.length) : stored;
}

// All inputs of a case, as `run` takes them; the mask of a slice is a slice, too. They are valid as long as the bundle.
inline std::vector<NamedView> golden_inputs(const Bundle& bundle, const GoldenCase& golden) {
  const Manifest& manifest = bundle.manifest();
  std::vector<NamedView> inputs{{manifest.input.name, golden_input(bundle, golden)}};
  for (const TensorSpec& input : manifest.more_inputs) {
    const TensorView stored(bundle.golden().at(golden.name + ".input." + input.name));
    const bool sliced = golden.start && stored.dtype() == Dtype::boolean;
    inputs.push_back({input.name, sliced ? stored.narrow(1, *golden.start, golden.length) : stored});
  }
  return inputs;
}

// The largest absolute error over all outputs of a case, compared in float64; NaN when either side has one. Throws
// Error when the outputs do not have the shapes of the manifest.
inline double golden_error(const Bundle& bundle, const GoldenCase& golden, const std::vector<TensorView>& outputs) {
  const std::vector<TensorSpec>& wanted_outputs = bundle.manifest().outputs;
  if (outputs.size() != wanted_outputs.size()) {
    throw Error("case '" + golden.name + "': expected " + std::to_string(wanted_outputs.size()) + " outputs, got " +
                std::to_string(outputs.size()) + ".");
  }
  double largest = 0;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const std::string name = golden.name + ".output." + wanted_outputs[i].name;
    const TensorView expected(bundle.golden().at(name));
    if (!outputs[i].defined() || outputs[i].items() != expected.items()) {
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

// Kernels differ between instruction sets: the tolerance is doubled on a CPU with another one than the exporter's.
// Throws Error when the program has no such case.
inline double golden_tolerance(const ProgramRecord& program, const GoldenCase& golden, const Manifest& manifest) {
  const bool same = detail::cpu_capability() == manifest.provenance.cpu;
  const auto found = program.cases.find(golden.name);
  if (found == program.cases.end()) {
    throw Error("program '" + program.backend + "': case '" + golden.name + "': not in the manifest.");
  }
  return (same ? 1 : 2) * found->second.tolerance;
}

namespace detail {

// The one case that every loader runs, because a program that loads may still give wrong numbers on this machine.
// `run(inputs)` gives the flat outputs, which own their memory. `object` is "bundle DIR: program 'NAME'".
template <typename Run>
void check_golden(const std::string& object, const Bundle& bundle, Run run) {
  for (const GoldenCase& golden : bundle.manifest().cases) {
    if (golden.name != "batch_1") continue;
    const auto outputs = run(golden_inputs(bundle, golden));
    const double error = golden_error(bundle, golden, std::vector<TensorView>(outputs.begin(), outputs.end()));
    const double tolerance = golden_tolerance(bundle.program(), golden, bundle.manifest());
    if (!std::isfinite(error) || error > tolerance) {  // a doubled tolerance may be infinite, an error may not
      throw Error(object + ": case 'batch_1': error " + format_number(error) + " is above the tolerance " +
                  format_number(tolerance) + ".");
    }
    return;
  }
  throw Error(object + ": case 'batch_1': not in the manifest.");
}

}  // namespace detail
}  // namespace regplug
