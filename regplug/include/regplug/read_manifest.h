// manifest.json, read strictly: every key of docs/bundle.md is there, no other, and what two keys say agrees.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "regplug/error.h"
#include "regplug/fields.h"
#include "regplug/json.h"
#include "regplug/manifest.h"
#include "regplug/version.h"

namespace regplug::detail {

inline Layout read_layout(const Fields& fields) {
  Layout layout;
  layout.num_registers = fields.integer("num_registers", 1);
  layout.hidden_dim = fields.integer("hidden_dim", 1);
  layout.start = fields.maybe_integer("start", 1 - kLargest);
  const bool by_index = !fields.at("indices").is_null();
  if (by_index) {
    fields.each_of("indices", [&](const std::string& where, const Json& value) {
      layout.indices.push_back(Fields::as_integer(where, value, 0));
    });
  }
  layout.num_tokens = fields.maybe_integer("num_tokens", 1);
  layout.normalized = fields.maybe_boolean("normalized");
  return layout;
}

inline Signature read_signature(const Fields& fields) {
  Signature signature{fields.text("name"), fields.one_of("dtype", {"float32", "float64", "float16", "bfloat16"}), {}};
  fields.each_of("shape", [&](const std::string& where, const Json& size) {
    const bool free = size == "B" || size == "T";
    signature.shape.push_back(free ? kFree : Fields::as_integer(where, size, 1));
  });
  return signature;
}

inline GoldenCase read_case(const Fields& fields) {
  GoldenCase golden;
  golden.name = fields.text("case");
  golden.batch = fields.integer("batch", 0);
  golden.start = fields.maybe_integer("start", 0);
  golden.length = fields.integer("length", 1);
  golden.eager_error = fields.amount("eager_error");
  golden.tolerance = fields.amount("tolerance");
  return golden;
}

inline Program read_program(const Fields& fields) {
  Program program{fields.text("backend"), fields.matching("file", "a file name, never a path", is_file_name), {}, {}};
  fields.each_in("properties", [&](const std::string& where, const std::string& name, const Json& value) {
    if (!value.is_string()) wrong(where, "a string", value);
    program.properties[name] = value.get<std::string>();
  });
  fields.each_in("cases", [&](const std::string& where, const std::string& name, const Json& value) {
    const Fields one(where, value, {"error", "tolerance"});
    program.cases[name] = {one.amount("error"), one.amount("tolerance")};
  });
  return program;
}

inline FileEntry read_file_entry(const Fields& fields) {
  return {static_cast<std::uint64_t>(fields.integer("size", 0)),
          fields.matching("sha256", "64 lower-case hexadecimal digits", is_sha256)};
}

inline Provenance read_provenance(const Fields& fields) {
  const Fields plugin = fields.inside("plugin", {"distribution", "version"});
  return {plugin.text("distribution"), plugin.text("version"), fields.text("regplug"),
          fields.text("torch"),        fields.text("python"),  fields.text("cpu")};
}

// The shortest sequence that holds the registers; not set where the layout contradicts itself.
inline std::optional<std::int64_t> least_tokens(const Json& json, const Layout& layout) {
  if (layout.start.has_value() != json["indices"].is_null()) return std::nullopt;
  std::int64_t least = 0;
  if (layout.start) {
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

inline void check_layout(const Json& json, const Manifest& manifest, const Layout& layout) {
  if (!least_tokens(json, layout)) wrong("layout", "positions that agree with its sizes", json);
  if (layout.num_registers != manifest.num_registers || layout.hidden_dim != manifest.hidden_dim) {
    wrong("layout", "the num_registers and hidden_dim of the manifest", json);
  }
}

// What two keys say must agree; the loaders rely on it, on the ranks of the shapes above all.
inline void check_signature(const Json& json, const Manifest& manifest) {
  const bool conditioner = manifest.is_conditioner();
  const auto same = [](const std::string& key, const Json& expected, const Json& got) {
    if (got != expected) wrong(key, shown(expected), got);
  };
  same("input.name", conditioner ? "tokens" : "registers", json["input"]["name"]);
  Json middle = manifest.num_registers;
  if (conditioner) middle = manifest.layout->num_tokens ? Json(*manifest.layout->num_tokens) : Json("T");
  same("input.shape", {"B", middle, manifest.hidden_dim}, json["input"]["shape"]);
  Json least;  // null for a readout
  if (conditioner) least = *least_tokens(json["layout"], *manifest.layout);
  same("input.min_tokens", least, json["input"]["min_tokens"]);

  const std::size_t count = manifest.outputs.size();
  if (conditioner ? count == 0 || count % 2 != 0 : count != 1) {
    wrong("outputs", conditioner ? "pairs of gamma and beta" : "one output", count);
  }
  for (std::size_t i = 0; i < count; ++i) {
    const Json& output = json["outputs"][i];
    const std::vector<std::int64_t>& shape = manifest.outputs[i].shape;
    const std::string where = "outputs." + std::to_string(i) + ".";
    const std::string film_name = (i % 2 == 0 ? "gamma_" : "beta_") + std::to_string(i / 2);
    const bool any_width = conditioner && !shape.empty() && shape.back() != kFree;
    same(where + "name", conditioner ? film_name : "conditioning", output["name"]);
    same(where + "dtype", manifest.input.dtype, output["dtype"]);
    same(where + "shape", {"B", any_width ? shape.back() : manifest.cond_dim}, output["shape"]);
  }
}

inline void check_lists(const Manifest& manifest) {
  const auto sorted = [](std::vector<std::string> names) {
    std::sort(names.begin(), names.end());
    return names;
  };
  std::vector<std::string> as_written;
  for (const GoldenCase& golden : manifest.cases) as_written.push_back(golden.name);
  const std::vector<std::string> cases = sorted(as_written);
  if (std::adjacent_find(cases.begin(), cases.end()) != cases.end() ||
      !std::binary_search(cases.begin(), cases.end(), "batch_1")) {
    wrong("golden.cases", "each case once and batch_1 among them", as_written);
  }
  std::vector<std::string> expected{"weights.safetensors", "golden.safetensors"};
  for (std::size_t i = 0; i < manifest.programs.size(); ++i) {
    const Program& program = manifest.programs[i];
    const std::string where = "programs." + std::to_string(i) + ".";
    const std::string begin = "program." + program.backend;
    if (program.file.rfind(begin, 0) != 0) wrong(where + "file", "a name that begins with " + begin, program.file);
    const std::vector<std::string> given = names_of(program.cases);
    if (given != cases) wrong(where + "cases", "the golden cases and no other", given);
    expected.push_back(program.file);
  }
  const std::vector<std::string> files = names_of(manifest.files);
  if (files != sorted(expected)) wrong("files", listed(expected), files);
}

inline void check_agreement(const Json& json, const Manifest& manifest) {
  const bool conditioner = manifest.is_conditioner();
  if (manifest.layout) check_layout(json["layout"], manifest, *manifest.layout);
  if (conditioner && !manifest.layout) wrong("layout", "an object", nullptr);
  if (conditioner != manifest.film.has_value()) wrong("film", conditioner ? "an object" : "null", json["film"]);
  check_signature(json, manifest);
  check_lists(manifest);
}

inline Manifest parse_manifest(std::string_view text) {
  Manifest manifest;
  manifest.json = parse_json(text);
  const Json& json = manifest.json;
  // Before anything else: another format may have other keys.
  const std::string format = std::to_string(REGPLUG_BUNDLE_FORMAT);
  if (json.is_object() && json.contains("bundle_format") && shown(json["bundle_format"]) != format) {
    throw Error("bundle_format: expected " + format + ", got " + shown(json["bundle_format"]) +
                "; use a newer regplug");
  }
  const Fields top("", json,
                   {"bundle_format", "holds", "strategy", "num_registers", "hidden_dim", "options", "cond_dim",
                    "layout", "film", "input", "outputs", "golden", "programs", "files", "provenance"});
  manifest.holds = top.one_of("holds", {"readout", "conditioner"});
  manifest.strategy = top.matching("strategy", "distribution:name", is_full_name);
  manifest.num_registers = top.integer("num_registers", 1);
  manifest.hidden_dim = top.integer("hidden_dim", 1);
  manifest.options = top.object("options");
  manifest.cond_dim = top.integer("cond_dim", 1);
  if (!top.at("layout").is_null()) {
    manifest.layout = read_layout(
        top.inside("layout", {"num_registers", "hidden_dim", "start", "indices", "num_tokens", "normalized"}));
  }
  if (!top.at("film").is_null()) {
    const Fields film = top.inside("film", {"generator", "options", "form", "order"});
    manifest.film = Film{film.matching("generator", "distribution:name", is_full_name), film.object("options"),
                         film.one_of("form", {"gamma", "1+gamma"}), film.one_of("order", {"gamma-first"})};
  }
  const Fields input = top.inside("input", {"name", "dtype", "shape", "min_batch", "min_tokens"});
  input.one_of("name", {"registers", "tokens"});
  manifest.input = read_signature(input);
  manifest.min_batch = input.integer("min_batch", 0);
  manifest.min_tokens = input.maybe_integer("min_tokens", 1).value_or(0);
  top.each_of("outputs", [&](const std::string& where, const Json& value) {
    manifest.outputs.push_back(read_signature(Fields(where, value, {"name", "dtype", "shape"})));
  });
  const Fields golden = top.inside("golden", {"truth", "cases"});
  manifest.truth = golden.one_of("truth", {"float64", "eager"});
  golden.each_of("cases", [&](const std::string& where, const Json& value) {
    manifest.cases.push_back(
        read_case(Fields(where, value, {"case", "batch", "start", "length", "eager_error", "tolerance"})));
  });
  top.each_of("programs", [&](const std::string& where, const Json& value) {
    manifest.programs.push_back(read_program(Fields(where, value, {"backend", "file", "properties", "cases"})));
  });
  top.each_in("files", [&](const std::string& where, const std::string& name, const Json& value) {
    manifest.files[name] = read_file_entry(Fields(where, value, {"size", "sha256"}));
  });
  manifest.provenance =
      read_provenance(top.inside("provenance", {"plugin", "regplug", "torch", "python", "cpu"}));
  check_agreement(json, manifest);
  return manifest;
}

// `label` begins every message: "bundle DIR: manifest.json".
inline Manifest read_manifest(std::string_view text, const std::string& label) {
  try {
    return parse_manifest(text);
  } catch (const Error& error) {
    throw Error(label + ": " + error.what() + ".");
  }
}

}  // namespace regplug::detail
