// The rules between the keys of a manifest. The loaders rely on them, above all on the ranks of the shapes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "regplug/detail/json_fields.h"
#include "regplug/detail/more_inputs.h"
#include "regplug/detail/strict_json.h"
#include "regplug/manifest.h"
#include "regplug/safetensors.h"
#include "regplug/tensor.h"

namespace regplug::detail {

// The shortest sequence that holds the registers; nothing when the layout contradicts itself.
inline std::optional<std::int64_t> min_tokens_of(const Json& json, const LayoutRecord& layout) {
  if (layout.start.has_value() != json["indices"].is_null()) return std::nullopt;
  std::int64_t least = 0;
  if (layout.num_registers == 0) {
    if (!layout.start || *layout.start < 0) return std::nullopt;
    least = *layout.start + 1;
  } else if (layout.start) {
    if (*layout.start < 0 && *layout.start > -layout.num_registers) return std::nullopt;
    least = *layout.start < 0 ? -*layout.start : *layout.start + layout.num_registers;
  } else {
    const std::vector<std::int64_t>& indices = layout.indices;
    const bool rising = std::adjacent_find(indices.begin(), indices.end(), std::greater_equal<>()) == indices.end();
    if (!rising || static_cast<std::int64_t>(indices.size()) != layout.num_registers) return std::nullopt;
    if (!layout.num_tokens) return std::nullopt;
    least = indices.back() + 1;
  }
  if (layout.num_tokens && *layout.num_tokens < least) return std::nullopt;
  return layout.num_tokens.value_or(least);
}

inline void check_layout(const Json& json, const Manifest& manifest, const LayoutRecord& layout) {
  if (!min_tokens_of(json, layout)) wrong_value("layout", "positions that agree with its sizes", json);
  if (layout.num_registers != manifest.num_registers || layout.hidden_dim != manifest.hidden_dim) {
    wrong_value("layout", "the num_registers and hidden_dim of the manifest", json);
  }
}

inline void check_image_shape(const Json& shape) {
  const bool fits = shape.size() >= 2 && shape.size() <= Sizes::kMaxRank && is_text(shape[0], "B") &&
                    std::all_of(shape.begin() + 1, shape.end(), [](const Json& size) { return size.is_number(); });
  if (!fits) wrong_value("input.shape", "\"B\" and 1 to 7 sizes", shape);
}

inline void check_input(const Json& json, const Manifest& manifest) {
  const bool conditioner = manifest.is_conditioner();
  const Json& shape = json["input"]["shape"];
  if (manifest.backbone) {
    expect_same("layout.normalized", manifest.backbone->normalized, json["layout"]["normalized"]);
    check_image_shape(shape);
    expect_same("input.name", "images", json["input"]["name"]);
    expect_same("input.min_tokens", nullptr, json["input"]["min_tokens"]);
    return;
  }
  const bool registers = !conditioner && manifest.bundle_format == 1;
  expect_same("input.name", registers ? "registers" : "tokens", json["input"]["name"]);
  const std::int64_t fixed = conditioner ? manifest.layout->num_tokens.value_or(0) : manifest.num_registers;
  expect_same("input.shape", {"B", fixed != 0 ? Json(fixed) : Json("T"), manifest.hidden_dim}, shape);
  Json least;  // null for a readout of a fixed number of tokens
  if (conditioner) {
    const LayoutRecord& layout = *manifest.layout;
    const bool all = layout.num_registers == 0 && !layout.num_tokens;
    least = all ? least_tokens(manifest) + *layout.start : *min_tokens_of(json["layout"], layout);
  } else if (fixed == 0) {
    least = least_tokens(manifest);
  }
  expect_same("input.min_tokens", least, json["input"]["min_tokens"]);
}

inline void check_outputs(const Json& json, const Manifest& manifest) {
  const bool conditioner = manifest.is_conditioner();
  const std::size_t count = manifest.outputs.size();
  if (conditioner ? count == 0 || count % 2 != 0 : count != 1) {
    wrong_value("outputs", conditioner ? "pairs of gamma and beta" : "one output", count);
  }
  for (std::size_t i = 0; i < count; ++i) {
    const Json& output = json["outputs"][i];
    const std::vector<std::int64_t>& shape = manifest.outputs[i].shape;
    const std::string where = "outputs." + std::to_string(i) + ".";
    const std::string film_name = (i % 2 == 0 ? "gamma_" : "beta_") + std::to_string(i / 2);
    const bool any_width = conditioner && !shape.empty() && shape.back() != kFree;
    expect_same(where + "name", conditioner ? film_name : "conditioning", output["name"]);
    expect_same(where + "dtype", manifest.input.dtype, output["dtype"]);
    expect_same(where + "shape", {"B", any_width ? shape.back() : manifest.cond_dim}, output["shape"]);
  }
}

inline std::vector<std::string> sorted(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  return names;
}

// The case that every loader runs exists, and each case fits the input.
inline void check_cases(const Manifest& manifest) {
  std::vector<std::string> cases;
  for (const GoldenCase& golden : manifest.cases) cases.push_back(golden.name);
  const std::vector<std::string> in_order = sorted(cases);
  if (std::adjacent_find(in_order.begin(), in_order.end()) != in_order.end() ||
      !std::binary_search(in_order.begin(), in_order.end(), "batch_1")) {
    wrong_value("golden.cases", "each case once and batch_1 among them", cases);
  }
  const std::size_t tensors = cases.size() * (manifest.num_inputs() + manifest.outputs.size());
  if (tensors > SafeTensors::kMaxTensors) {
    wrong_value("golden.cases", "at most " + std::to_string(SafeTensors::kMaxTensors) + " tensors", tensors);
  }
  const std::int64_t length = manifest.input.shape[1];
  const auto least = [](std::int64_t size) { return "an integer >= " + std::to_string(size); };
  for (std::size_t i = 0; i < manifest.cases.size(); ++i) {
    const GoldenCase& golden = manifest.cases[i];
    const std::string where = "golden.cases." + std::to_string(i) + ".";
    if (golden.batch < manifest.min_batch) wrong_value(where + "batch", least(manifest.min_batch), golden.batch);
    if (golden.name.rfind("batch_", 0) == 0) {
      expect_same(where + "case", "batch_" + std::to_string(golden.batch), golden.name);
    }
    if (length != kFree) expect_same(where + "length", length, golden.length);
    if (golden.length < manifest.min_tokens) wrong_value(where + "length", least(manifest.min_tokens), golden.length);
  }
}

inline bool is_flags(const std::string& text) {
  for (std::size_t begin = 0; !text.empty() && begin <= text.size();) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    if (!is_name(std::string_view(text).substr(begin, end - begin))) return false;
    begin = end + 1;
  }
  return true;
}

inline void check_programs(const Manifest& manifest) {
  std::vector<std::string> cases;
  std::map<std::string, double> tolerances;
  for (const GoldenCase& golden : manifest.cases) {
    cases.push_back(golden.name);
    tolerances[golden.name] = golden.tolerance;
  }
  for (std::size_t i = 0; i < manifest.programs.size(); ++i) {
    const ProgramRecord& program = manifest.programs[i];
    const std::string where = "programs." + std::to_string(i) + ".";
    const std::string begin = "program." + program.backend;
    if (program.file.rfind(begin, 0) != 0) {
      wrong_value(where + "file", "a name that begins with " + begin, program.file);
    }
    const auto flags = program.properties.find("cpu_flags");
    if (flags != program.properties.end() && !is_flags(flags->second)) {
      wrong_value(where + "properties.cpu_flags", "words separated by single spaces", flags->second);
    }
    const std::vector<std::string> given = keys_of(program.cases);
    if (given != sorted(cases)) wrong_value(where + "cases", "the golden cases and no other", given);
    for (const auto& [name, result] : program.cases) {
      const double tolerance = tolerances[name];
      expect_same(where + "cases." + name + ".tolerance", tolerance, result.tolerance);
      if (result.error > tolerance) {
        wrong_value(where + "cases." + name + ".error", "at most " + format_value(tolerance), result.error);
      }
    }
  }
}

// Sizes of files in bytes. A file may be sparse, so a large size costs an attacker nothing.
constexpr std::uint64_t kMaxGolden = std::uint64_t{256} << 20;
constexpr std::uint64_t kMaxProgram = std::uint64_t{4} << 30;
constexpr std::uint64_t kMaxWeights = std::uint64_t{64} << 30;

inline void check_files(const Manifest& manifest) {
  std::vector<std::string> expected{"weights.safetensors", "golden.safetensors"};
  for (const ProgramRecord& program : manifest.programs) expected.push_back(program.file);
  const std::vector<std::string> files = keys_of(manifest.files);
  if (files != sorted(expected)) wrong_value("files", format_list(expected), files);
  for (const auto& [name, entry] : manifest.files) {
    std::uint64_t most = kMaxProgram;
    if (name == "weights.safetensors") most = kMaxWeights;
    if (name == "golden.safetensors") most = kMaxGolden;
    if (entry.size > most) wrong_value("files." + name + ".size", "at most " + std::to_string(most), entry.size);
  }
}

inline void check_packages(const Manifest& manifest) {
  const auto distribution = [](const std::string& name) { return name.substr(0, name.find(':')); };
  std::vector<std::string> wanted{"regplug", distribution(manifest.strategy)};
  if (manifest.film) wanted.push_back(distribution(manifest.film->generator));
  if (manifest.backbone) wanted.push_back(distribution(manifest.backbone->name));
  for (const std::string& name : sorted(wanted)) {
    if (manifest.provenance.packages.count(name) != 0) continue;
    wrong_value("provenance.packages", name + " among them", keys_of(manifest.provenance.packages));
  }
}

inline void check_rules(const Json& json, const Manifest& manifest) {
  const bool conditioner = manifest.is_conditioner();
  if (manifest.bundle_format == 1 && manifest.num_registers == 0) {
    wrong_value("num_registers", "an integer >= 1", nullptr);
  }
  if (manifest.layout) check_layout(json["layout"], manifest, *manifest.layout);
  if ((conditioner || manifest.backbone) && !manifest.layout) wrong_value("layout", "an object", nullptr);
  if (conditioner != manifest.film.has_value()) wrong_value("film", conditioner ? "an object" : "null", json["film"]);
  check_parts(json, manifest);
  check_input(json, manifest);
  check_more_inputs(json, manifest);
  check_outputs(json, manifest);
  check_cases(manifest);
  check_programs(manifest);
  check_files(manifest);
  check_packages(manifest);
}

}  // namespace regplug::detail
