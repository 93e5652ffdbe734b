// Reads manifest.json strictly: every key of docs/bundle.md, no other key, and the rules between keys.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "regplug/detail/json_fields.h"
#include "regplug/detail/manifest_rules.h"
#include "regplug/detail/strict_json.h"
#include "regplug/error.h"
#include "regplug/manifest.h"
#include "regplug/version.h"

namespace regplug::detail {

inline LayoutRecord read_layout(const Fields& fields) {
  LayoutRecord layout;
  layout.num_registers = fields.maybe_integer("num_registers", 1).value_or(0);
  layout.hidden_dim = fields.integer("hidden_dim", 1);
  layout.start = fields.maybe_integer("start", -kMaxInteger);
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

inline BackboneRecord read_backbone(const Fields& top) {
  const Fields fields = top.inside("backbone", {"name", "model", "options", "normalized"});
  BackboneRecord backbone;
  backbone.name = fields.matching("name", "distribution:name", is_full_name);
  if (!fields.at("model").is_null()) {
    backbone.model = fields.matching("model", "a model's name, never a path or an address", is_file_name);
  }
  backbone.options = fields.options("options");
  backbone.normalized = fields.boolean("normalized");
  return backbone;
}

inline std::vector<std::int64_t> read_shape(const Fields& fields) {
  std::vector<std::int64_t> shape;
  fields.each_of("shape", [&](const std::string& where, const Json& size) {
    const bool varies = is_text(size, "B") || is_text(size, "T");
    shape.push_back(varies ? kFree : Fields::as_integer(where, size, 1));
  });
  return shape;
}

inline TensorSpec read_tensor_spec(const Fields& fields) {
  return {fields.name("name"), fields.one_of("dtype", {"float32", "float64", "float16", "bfloat16"}),
          read_shape(fields)};
}

inline constexpr const char* kInputName = "lower-case letters, digits and underscores";

inline TensorSpec read_more_input(const Fields& fields) {
  return {fields.matching("name", kInputName, is_input_name),
          fields.one_of("dtype", {"float32", "float64", "float16", "bfloat16", "bool"}), read_shape(fields)};
}

// How many numbers `tokens` has is a rule between keys.
inline PartRecord read_part(const Fields& fields) {
  PartRecord part;
  part.name = fields.matching("name", kInputName, is_input_name);
  part.width = fields.integer("width", 1);
  part.is_vector = fields.at("tokens").is_null();
  std::vector<std::optional<std::int64_t>> tokens;
  if (!part.is_vector) {
    fields.each_of("tokens", [&](const std::string& where, const Json& value) {
      tokens.push_back(value.is_null() ? std::nullopt : std::optional(Fields::as_integer(where, value, -kMaxInteger)));
    });
  }
  if (!tokens.empty()) part.start = tokens.front().value_or(0);
  if (tokens.size() > 1) part.stop = tokens[1];
  part.takes_mask = fields.boolean("takes_mask");
  return part;
}

inline GoldenCase read_case(const Fields& fields) {
  GoldenCase golden;
  golden.name = fields.name("case");
  golden.batch = fields.integer("batch", 0);
  golden.start = fields.maybe_integer("start", 0);
  golden.length = fields.integer("length", 1);
  golden.eager_error = fields.amount("eager_error");
  golden.tolerance = fields.amount("tolerance");
  return golden;
}

inline ProgramRecord read_program(const Fields& fields) {
  ProgramRecord program{
      fields.name("backend"), fields.matching("file", "a file name, never a path", is_file_name), {}, {}};
  const auto property = [&](const std::string& where, const std::string& name, const Json& value) {
    if (!value.is_string() || !is_printable(value.get<std::string>())) wrong_value(where, "printable ASCII", value);
    program.properties[name] = value.get<std::string>();
  };
  fields.each_in("properties", "a plain name", is_name, property);
  const auto result = [&](const std::string& where, const std::string& name, const Json& value) {
    const Fields one(where, value, {"error", "tolerance"});
    program.cases[name] = {one.amount("error"), one.amount("tolerance")};
  };
  fields.each_in("cases", "a plain name", is_name, result);
  return program;
}

inline FileRecord read_file_record(const Fields& fields) {
  return {static_cast<std::uint64_t>(fields.integer("size", 0)),
          fields.matching("sha256", "64 lower-case hexadecimal digits", is_sha256)};
}

inline BundleProvenance read_provenance(const Fields& fields) {
  BundleProvenance provenance;
  const auto package = [&](const std::string& where, const std::string& name, const Json& value) {
    if (!value.is_string() || !is_version(value.get<std::string>())) wrong_value(where, "a version", value);
    provenance.packages[name] = value.get<std::string>();
  };
  fields.each_in("packages", "a plain name", is_name, package);
  provenance.torch = fields.version("torch");
  provenance.python = fields.version("python");
  provenance.cpu = fields.version("cpu");
  return provenance;
}

// Checked first, because another format may have other keys; the newest when the manifest says none.
inline std::int64_t read_format(const Json& json) {
  if (!json.is_object() || !json.contains("bundle_format")) return REGPLUG_BUNDLE_FORMAT;
  const std::string got = format_value(json["bundle_format"]);
  if (got == "1") return 1;
  if (got == "2") return 2;
  throw Fault("bundle_format: expected 1 or 2, got " + got + "; use a newer regplug");
}

inline void read_more_inputs(const Fields& top, Manifest& manifest) {
  top.each_of("more_inputs", [&](const std::string& where, const Json& value) {
    manifest.more_inputs.push_back(read_more_input(Fields(where, value, {"name", "dtype", "shape"})));
  });
  if (top.at("parts").is_null()) return;
  top.each_of("parts", [&](const std::string& where, const Json& value) {
    manifest.parts.push_back(read_part(Fields(where, value, {"name", "width", "tokens", "takes_mask"})));
  });
}

inline Manifest parse_manifest(std::string_view text) {
  Manifest manifest;
  manifest.json = parse_json(text);
  const Json& json = manifest.json;
  manifest.bundle_format = read_format(json);
  std::vector<const char*> keys{"bundle_format", "holds",  "strategy", "num_registers", "hidden_dim", "options",
                                "cond_dim",      "layout", "film",     "backbone",      "input",      "outputs",
                                "golden",        "programs", "files",  "provenance"};
  if (manifest.bundle_format != 1) keys.insert(keys.end(), {"more_inputs", "parts"});
  const Fields top("", json, keys);
  manifest.holds = top.one_of("holds", {"readout", "conditioner"});
  manifest.strategy = top.matching("strategy", "distribution:name", is_full_name);
  manifest.num_registers = top.maybe_integer("num_registers", 1).value_or(0);
  manifest.hidden_dim = top.integer("hidden_dim", 1);
  manifest.options = top.options("options");
  manifest.cond_dim = top.integer("cond_dim", 1);
  if (!top.at("layout").is_null()) {
    manifest.layout = read_layout(
        top.inside("layout", {"num_registers", "hidden_dim", "start", "indices", "num_tokens", "normalized"}));
  }
  if (!top.at("film").is_null()) {
    const Fields film = top.inside("film", {"generator", "options", "form", "order"});
    manifest.film = FiLMRecord{film.matching("generator", "distribution:name", is_full_name), film.options("options"),
                               film.one_of("form", {"gamma", "1+gamma"}), film.one_of("order", {"gamma-first"})};
  }
  if (!top.at("backbone").is_null()) manifest.backbone = read_backbone(top);
  const Fields input = top.inside("input", {"name", "dtype", "shape", "min_batch", "min_tokens"});
  input.one_of("name", {"registers", "tokens", "images"});
  manifest.input = read_tensor_spec(input);
  manifest.min_batch = input.integer("min_batch", 0);
  manifest.min_tokens = input.maybe_integer("min_tokens", 1).value_or(0);
  top.each_of("outputs", [&](const std::string& where, const Json& value) {
    manifest.outputs.push_back(read_tensor_spec(Fields(where, value, {"name", "dtype", "shape"})));
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
  const auto file = [&](const std::string& where, const std::string& name, const Json& value) {
    manifest.files[name] = read_file_record(Fields(where, value, {"size", "sha256"}));
  };
  top.each_in("files", "a file name, never a path", is_file_name, file);
  manifest.provenance = read_provenance(top.inside("provenance", {"packages", "torch", "python", "cpu"}));
  if (manifest.bundle_format != 1) read_more_inputs(top, manifest);
  check_rules(json, manifest);
  return manifest;
}

// `label` begins every message: "bundle DIR: manifest.json".
inline Manifest read_manifest(std::string_view text, const std::string& label) {
  try {
    return parse_manifest(text);
  } catch (const Fault& error) {
    throw Error(label + ": " + error.what() + ".");
  }
}

}  // namespace regplug::detail
