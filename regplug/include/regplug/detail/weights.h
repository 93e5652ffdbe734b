// Checks that a weights file fits a program: names, shapes, dtypes, and the metadata of the file.
#pragma once

#include <fcntl.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "regplug/detail/folder.h"
#include "regplug/detail/json_fields.h"
#include "regplug/detail/strict_json.h"
#include "regplug/dtype.h"
#include "regplug/error.h"
#include "regplug/manifest.h"
#include "regplug/safetensors.h"

namespace regplug::detail {

// The weights that a program expects, without bytes.
using WeightSpecs = std::map<std::string, TensorBytes>;

inline void check_weights(const WeightSpecs& wanted, const SafeTensors& weights, const std::string& label) {
  const std::vector<std::string> names = keys_of(wanted);
  const std::vector<std::string> got = keys_of(weights.tensors());
  if (names != got) throw Error(label + ": expected tensors " + format_list(names) + ", got " + format_list(got) + ".");
  for (const auto& [name, tensor] : wanted) {
    const std::string expected = tensor.signature();
    const std::string found = weights.at(name).signature();
    if (found == expected) continue;
    throw Error(label + ": tensor '" + name + "': expected " + expected + ", got " + found + ".");
  }
}

// A weights file of this package describes its module, because weights of another strategy may have the same shapes.
inline void check_metadata(const Manifest& manifest, const SafeTensors& weights, const std::string& label) {
  const auto found = weights.metadata().find("regplug");
  if (found == weights.metadata().end()) return;
  Json said;
  const FreeAtEnd freed(said);
  try {
    said = parse_json(found->second);
  } catch (const Error&) {  // reported below: null is not an object
  }
  if (!said.is_object()) throw Error(label + ": metadata: expected a JSON object under 'regplug'.");
  for (const char* key :
       {"holds", "strategy", "num_registers", "hidden_dim", "options", "film", "layout", "backbone"}) {
    if (!said.contains(key) || said[key] == manifest.json[key]) continue;
    // a model may be spelled in several ways, and weights of two models have different shapes
    if (std::string(key) == "backbone" && said[key].is_object() && manifest.json[key].is_object() &&
        said[key].value("name", Json()) == manifest.json[key]["name"] &&
        said[key].value("normalized", Json()) == manifest.json[key]["normalized"]) {
      continue;
    }
    throw Error(label + ": " + key + ": expected " + format_value(manifest.json[key]) + ", got " +
                format_value(said[key]) + ".");
  }
}

// Reads a weights file outside a bundle. Throws Error when it does not fit the program or the manifest.
inline SafeTensors read_weights(const std::string& file, bool follow_links, const WeightSpecs& wanted,
                                const Manifest& manifest) {
  const std::string label = "weights " + file;
  const File opened(AT_FDCWD, file, label, follow_links, ".");
  std::uint64_t most = SafeTensors::kMaxOverhead;
  for (const auto& [name, tensor] : wanted) {
    std::uint64_t size = item_size(dtype_named(tensor.dtype));
    for (const std::int64_t length : tensor.shape) size *= static_cast<std::uint64_t>(length);
    most += size;
  }
  if (opened.size() > most) {
    throw Error(label + ": expected at most " + std::to_string(most) + " bytes, got " + std::to_string(opened.size()) +
                ".");
  }
  SafeTensors weights(opened.read_all(), label);
  check_metadata(manifest, weights, label);
  check_weights(wanted, weights, label);
  return weights;
}

}  // namespace regplug::detail
