// Golden cases as tensors: what a program must give, and how far off it was.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Version.h>

#include <cstddef>
#include <string>
#include <vector>

#include "regplug/bundle.h"
#include "regplug/manifest.h"
#include "regplug/tensor.h"

namespace regplug {

// The input of a case; of a slice, the strided view into what is stored.
inline at::Tensor golden_input(const Bundle& bundle, const GoldenCase& golden) {
  const at::Tensor stored = to_tensor(bundle.golden().at(golden.name + ".input"));
  return golden.start ? stored.narrow(1, *golden.start, golden.length) : stored;
}

// Largest absolute error over all outputs of a case, compared in float64; NaN where either side has one.
inline double golden_error(const Bundle& bundle, const GoldenCase& golden, const std::vector<at::Tensor>& outputs) {
  double largest = 0;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const std::string name = golden.name + ".output." + bundle.manifest().outputs.at(i).name;
    const at::Tensor expected = to_tensor(bundle.golden().at(name)).to(at::kDouble);
    if (expected.numel() == 0) continue;
    const double error = (outputs[i].to(at::kDouble) - expected).abs().max().item<double>();
    if (!(error <= largest)) largest = error;
    if (largest != largest) break;
  }
  return largest;
}

// Kernels differ between instruction sets: on another one than the exporter's, twice the tolerance is allowed.
inline double golden_tolerance(const Program& program, const GoldenCase& golden, const Manifest& manifest) {
  const bool same = at::get_cpu_capability() == manifest.provenance.cpu;
  return (same ? 1 : 2) * program.cases.at(golden.name).tolerance;
}

}  // namespace regplug
