// The rules of format 2 for a manifest's further inputs, a mask and vectors, and for the parts of a join.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "regplug/detail/json_fields.h"
#include "regplug/detail/mask_rules.h"
#include "regplug/detail/strict_json.h"
#include "regplug/manifest.h"

namespace regplug::detail {

constexpr std::size_t kMaxVectors = 64;
constexpr std::size_t kMaxParts = 64;
constexpr std::size_t kMaxInputs = 2 + kMaxVectors;  // the first one, a mask, and vectors

inline void expect_same(const std::string& key, const Json& expected, const Json& got) {
  if (got != expected) wrong_value(key, format_value(expected), got);
}

inline bool has_duplicates(const std::vector<std::string>& names) {
  return std::set<std::string>(names.begin(), names.end()).size() != names.size();
}

inline void check_more_inputs(const Json& json, const Manifest& manifest) {
  std::vector<std::string> names;
  for (const TensorSpec& input : manifest.more_inputs) names.push_back(input.name);
  if (has_duplicates(names) || names.size() > 1 + kMaxVectors) {
    wrong_value("more_inputs", "different names, at most " + std::to_string(1 + kMaxVectors), names);
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    const Json& input = json["more_inputs"][i];
    const std::vector<std::int64_t>& shape = manifest.more_inputs[i].shape;
    const std::string where = "more_inputs." + std::to_string(i) + ".";
    if (i == 0 && names[i] == "mask" && !manifest.backbone) {
      expect_same(where + "dtype", "bool", input["dtype"]);
      expect_same(where + "shape", {"B", json["input"]["shape"][1]}, input["shape"]);
      continue;
    }
    for (const char* taken : {"registers", "tokens", "images", "mask"}) {
      if (names[i] == taken) wrong_value(where + "name", "a vector's name", names[i]);
    }
    const bool any_width = !shape.empty() && shape.back() != kFree;
    expect_same(where + "dtype", manifest.input.dtype, input["dtype"]);
    expect_same(where + "shape", {"B", any_width ? shape.back() : 1}, input["shape"]);
  }
}

// Whether a part has tokens in the sequence, if its length is known (else 0), and a mask only with tokens.
inline bool part_fits(const Json& tokens, const PartRecord& part, std::int64_t length) {
  if (part.is_vector) return !part.takes_mask;
  if (tokens.size() != 2 || tokens[0].is_null()) return false;
  const auto [begin, end] = places_of(part, length);
  if (length != 0) return begin < end;
  if (!part.stop || (part.start >= 0 && *part.stop < 0)) return true;
  return (part.start < 0) == (*part.stop < 0) && part.start < *part.stop;
}

// The shortest sequence in which every part has all its tokens; one token without parts.
inline std::int64_t least_tokens(const Manifest& manifest) {
  std::int64_t least = 1;
  for (const PartRecord& part : manifest.parts) {
    if (part.is_vector) continue;
    if (part.start < 0) {
      least = std::max(least, -part.start);
    } else if (!part.stop || *part.stop < 0) {
      least = std::max(least, part.start + 1 - part.stop.value_or(0));
    } else {
      least = std::max(least, *part.stop);
    }
  }
  return least;
}

inline void check_parts(const Json& json, const Manifest& manifest) {
  std::vector<std::string> vectors;
  for (const TensorSpec& input : manifest.more_inputs) {
    if (input.name != "mask") vectors.push_back(input.name);
  }
  if (manifest.bundle_format == 1 || json["parts"].is_null()) {
    if (!vectors.empty()) wrong_value("parts", "a list, for the vectors", nullptr);
    return;
  }
  std::vector<std::string> names;
  std::vector<std::string> without_tokens;
  std::int64_t total = 0;
  for (const PartRecord& part : manifest.parts) {
    names.push_back(part.name);
    if (part.is_vector) without_tokens.push_back(part.name);
  }
  if (names.empty() || names.size() > kMaxParts || has_duplicates(names)) {
    wrong_value("parts", "1 to " + std::to_string(kMaxParts) + " parts with different names", names);
  }
  for (const PartRecord& part : manifest.parts) total += part.width;  // 64 numbers below 2^53
  if (total != manifest.cond_dim) {
    wrong_value("parts", "widths whose sum is " + std::to_string(manifest.cond_dim), total);
  }
  if (without_tokens != vectors) wrong_value("parts", format_value(vectors) + " without tokens", without_tokens);
  for (std::size_t i = 0; i < names.size(); ++i) {
    const Json& part = json["parts"][i];
    if (part_fits(part["tokens"], manifest.parts[i], manifest.num_registers)) continue;
    wrong_value("parts." + std::to_string(i), "tokens inside the sequence", part);
  }
}

}  // namespace regplug::detail
