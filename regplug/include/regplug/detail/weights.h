// Whether a file of weights fits a program: names, shapes, dtypes, and what the file says it is.
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

// The weights that a program wants; their bytes are left empty.
using WeightSignatures = std::map<std::string, TensorBytes>;

inline void check_weights(const WeightSignatures& wanted, const SafeTensors& weights, const std::string& label) {
  const std::vector<std::string> names = names_of(wanted);
  const std::vector<std::string> got = names_of(weights.tensors());
  if (names != got) throw Error(label + ": expected tensors " + listed(names) + ", got " + listed(got) + ".");
  for (const auto& [name, tensor] : wanted) {
    const std::string expected = tensor.signature();
    const std::string found = weights.at(name).signature();
    if (found == expected) continue;
    throw Error(label + ": tensor '" + name + "': expected " + expected + ", got " + found + ".");
  }
}

// A weights file of this package says what it is; weights of another strategy may have the same shapes.
inline void check_metadata(const Manifest& manifest, const SafeTensors& weights, const std::string& label) {
  const auto found = weights.metadata().find("regplug");
  if (found == weights.metadata().end()) return;
  Json said;
  try {
    said = parse_json(found->second);
  } catch (const Error&) {  // null is no object either
  }
  if (!said.is_object()) throw Error(label + ": metadata: expected a JSON object under 'regplug'.");
  for (const char* key :
       {"holds", "strategy", "num_registers", "hidden_dim", "options", "film", "layout", "backbone"}) {
    if (!said.contains(key) || said[key] == manifest.json[key]) continue;
    // a backbone's model may be spelled in several ways, and its weights tell two models apart
    if (std::string(key) == "backbone" && said[key].is_object() && manifest.json[key].is_object() &&
        said[key].value("name", Json()) == manifest.json[key]["name"] &&
        said[key].value("normalized", Json()) == manifest.json[key]["normalized"]) {
      continue;
    }
    throw Error(label + ": " + key + ": expected " + shown(manifest.json[key]) + ", got " + shown(said[key]) + ".");
  }
}

// Reads a lone weights file. Throws Error when it does not fit what the program wants or the manifest says.
inline SafeTensors read_weights(const std::string& file, bool follow_links, const WeightSignatures& wanted,
                                const Manifest& manifest) {
  const std::string label = "weights " + file;
  const File opened(AT_FDCWD, file, label, follow_links, ".");
  std::uint64_t most = SafeTensors::kOverhead;
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
