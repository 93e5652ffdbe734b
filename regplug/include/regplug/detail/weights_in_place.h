// A set of weights as torch tensors, without a copy of the bytes of their safetensors file.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "regplug/detail/aten_handle.h"
#include "regplug/detail/json_fields.h"
#include "regplug/detail/strict_json.h"
#include "regplug/detail/weights.h"
#include "regplug/dtype.h"
#include "regplug/error.h"
#include "regplug/manifest.h"
#include "regplug/safetensors.h"
#include "regplug/tensor.h"

namespace regplug::detail {
REGPLUG_SHIM_BEGIN

// Immutable, so threads share it without locks.
class WeightsInPlace {
 public:
  explicit WeightsInPlace(SafeTensors weights) : weights_(std::move(weights)) {
    for (const auto& [name, entry] : weights_.tensors()) {
      const TensorView stored(entry);
      // A stored bool may be any byte, but only 0 and 1 are valid values.
      const bool in_place = stored.is_aligned() && stored.dtype() != Dtype::boolean;
      if (!in_place) copies_.push_back(copy(stored));
      const TensorView& view = in_place ? stored : copies_.back().view();
      tensors_.push_back(to_aten(view));
      blocks_.push_back({view.data(), view.data() + view.nbytes()});
    }
  }

  // In the order of their names, which is the order of a program's inputs.
  const std::vector<AtenTensor>& tensors() const { return tensors_; }

  bool overlaps(const Block& block) const {
    for (const Block& own : blocks_) {
      if (own.overlaps(block)) return true;
    }
    return false;
  }

 private:
  static Tensor copy(const TensorView& stored) {
    if (stored.dtype() != Dtype::boolean) return Tensor::copy_of(stored);
    const auto memory = std::make_shared<std::vector<char>>(stored.data(), stored.data() + stored.nbytes());
    for (char& byte : *memory) byte = byte == 0 ? 0 : 1;
    return Tensor(stored.dtype(), stored.sizes(), memory->data(), memory);
  }

  SafeTensors weights_;  // owns the bytes of the tensors
  std::vector<Tensor> copies_;
  std::vector<AtenTensor> tensors_;
  std::vector<Block> blocks_;
};

// Reads a program's property `weights`: the JSON text of {name: [dtype, sizes]}. `label` begins every message.
inline WeightSpecs expected_weights(const std::string& label, const ProgramRecord& program) {
  const auto property = program.properties.find("weights");
  const auto fail = [&] { throw Error(label + ": weights: expected the JSON text of {name: [dtype, sizes]}."); };
  if (property == program.properties.end()) fail();
  WeightSpecs expected;
  try {
    Json said = parse_json(property->second);
    const FreeAtEnd freed(said);
    if (!said.is_object()) fail();
    for (const auto& [name, value] : said.items()) {
      if (!value.is_array() || value.size() != 2 || !value[0].is_string() || !value[1].is_array()) fail();
      TensorBytes& tensor = expected[name];
      tensor.dtype = value[0].get<std::string>();
      if (!find_dtype(tensor.dtype)) fail();
      for (const Json& size : value[1]) tensor.shape.push_back(Fields::as_integer("", size, 0));
    }
  } catch (const Error&) {  // not JSON, or a size is not an integer
    fail();
  }
  return expected;
}

REGPLUG_SHIM_END
}  // namespace regplug::detail
