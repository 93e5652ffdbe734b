// Computes the tolerances of the golden cases again: a manifest cannot allow more than docs/bundle.md does.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>

#include "regplug/detail/json_fields.h"
#include "regplug/detail/numbers.h"
#include "regplug/detail/strict_json.h"
#include "regplug/dtype.h"
#include "regplug/error.h"
#include "regplug/manifest.h"
#include "regplug/safetensors.h"

namespace regplug::detail {

// The largest |x| of a case's stored outputs; 0 without outputs, inf when one is not finite.
inline double largest_output(const Manifest& manifest, const GoldenCase& golden, const SafeTensors& stored) {
  double largest = 0;
  for (const TensorSpec& output : manifest.outputs) {
    const TensorBytes& tensor = stored.at(golden.name + ".output." + output.name);
    const Dtype dtype = dtype_named(tensor.dtype);
    for (std::size_t place = 0; place < tensor.bytes.size(); place += item_size(dtype)) {
      const double value = std::abs(to_double(dtype, tensor.bytes.data() + place));
      if (!std::isfinite(value)) return HUGE_VAL;
      largest = std::max(largest, value);
    }
  }
  return largest;
}

// `bundle` is "bundle DIR: ". The tensors have the names, shapes and dtypes of the manifest.
inline void check_tolerances(const std::string& bundle, const Manifest& manifest, const SafeTensors& stored) {
  const double eps = epsilon(dtype_named(manifest.input.dtype));
  const bool exact = manifest.truth == "float64";
  for (std::size_t i = 0; i < manifest.cases.size(); ++i) {
    const GoldenCase& golden = manifest.cases[i];
    const double scale = largest_output(manifest, golden, stored);
    if (!std::isfinite(scale)) {
      throw Error(bundle + "golden.safetensors: case '" + golden.name + "': expected finite outputs, got inf or nan.");
    }
    const std::string where = bundle + "manifest.json: golden.cases." + std::to_string(i) + ".";
    const double most = exact ? scale * std::min(0.125, 16 * std::sqrt(eps)) : 0;
    if (golden.eager_error > most) {
      throw Error(where + "eager_error: expected at most " + format_value(most) + ", got " +
                  format_value(golden.eager_error) + ".");
    }
    const double wanted = exact ? 4 * golden.eager_error + 4 * eps * scale : 1e-5 * scale;
    if (std::abs(golden.tolerance - wanted) > 1e-9 * wanted) {
      throw Error(where + "tolerance: expected " + format_value(wanted) + ", got " + format_value(golden.tolerance) +
                  ".");
    }
  }
}

}  // namespace regplug::detail
