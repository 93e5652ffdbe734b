// manifest.json as types. docs/bundle.md describes each key.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "regplug/detail/strict_json.h"
#include "regplug/error.h"

namespace regplug {

// A size that may differ between calls: B, and T where the layout does not fix it.
constexpr std::int64_t kFree = -1;

// One input or output of a program.
struct TensorSpec {
  std::string name;
  std::string dtype;                // torch's name: "float32"; "bool" for a mask
  std::vector<std::int64_t> shape;  // kFree for "B" and "T"
};

struct LayoutRecord {
  std::int64_t num_registers = 0;  // 0: all tokens from `start` to the end
  std::int64_t hidden_dim = 0;
  std::optional<std::int64_t> start;  // negative: counts from the end; not set when `indices` is used
  std::vector<std::int64_t> indices;
  std::optional<std::int64_t> num_tokens;
  std::optional<bool> normalized;
};

struct FiLMRecord {
  std::string generator;
  Json options;
  std::string form;   // "gamma" or "1+gamma"
  std::string order;  // "gamma-first"
};

// The backbone in front of the readout.
struct BackboneRecord {
  std::string name;
  std::optional<std::string> model;
  Json options;
  bool normalized = false;  // whether its final norm is applied
};

// One part of a join: what it adds to the conditioning vector, and which tokens it reads, [start:stop] as in Python.
struct PartRecord {
  std::string name;
  std::int64_t width = 0;
  bool is_vector = false;  // an input of this name; if so, it reads no tokens
  std::int64_t start = 0;
  std::optional<std::int64_t> stop;  // not set: to the end
  bool takes_mask = false;
};

struct GoldenCase {
  std::string name;
  std::int64_t batch = 0;
  // set when the case is a slice of the stored input, [:, start:start+length], and of its mask
  std::optional<std::int64_t> start;
  std::int64_t length = 0;
  double eager_error = 0;
  double tolerance = 0;
};

struct CaseResult {
  double error = 0;
  double tolerance = 0;
};

struct ProgramRecord {
  std::string backend;
  std::string file;
  std::map<std::string, std::string> properties;
  std::map<std::string, CaseResult> cases;
};

struct FileRecord {
  std::uint64_t size = 0;
  std::string sha256;
};

struct BundleProvenance {
  std::map<std::string, std::string> packages;  // distributions the module needs -> version
  std::string torch;
  std::string python;
  std::string cpu;
};

struct Manifest {
  std::int64_t bundle_format = 0;
  std::string holds;  // "readout" or "conditioner"
  std::string strategy;
  std::int64_t num_registers = 0;  // 0: any number of tokens
  std::int64_t hidden_dim = 0;
  Json options;
  std::int64_t cond_dim = 0;
  std::optional<LayoutRecord> layout;
  std::optional<FiLMRecord> film;
  std::optional<BackboneRecord> backbone;  // set when the input is images
  TensorSpec input;
  std::int64_t min_batch = 0;
  std::int64_t min_tokens = 0;          // 0 unless the number of tokens may differ between calls
  std::vector<TensorSpec> more_inputs;  // `mask`, if there is one; then vectors
  std::vector<PartRecord> parts;        // of a join, else none
  std::vector<TensorSpec> outputs;
  std::string truth;  // "float64" or "eager"
  std::vector<GoldenCase> cases;
  std::vector<ProgramRecord> programs;
  std::map<std::string, FileRecord> files;
  BundleProvenance provenance;
  Json json;  // the parsed file

  Manifest() = default;
  Manifest(const Manifest&) = default;
  Manifest(Manifest&&) = default;
  Manifest& operator=(const Manifest&) = default;
  Manifest& operator=(Manifest&&) = default;
  ~Manifest() {
    detail::free_items(json);
    detail::free_items(options);
    if (film) detail::free_items(film->options);
    if (backbone) detail::free_items(backbone->options);
  }

  bool is_conditioner() const { return holds == "conditioner"; }

  // All inputs in a program's order: `input`, then `more_inputs`.
  std::size_t num_inputs() const { return 1 + more_inputs.size(); }
  const TensorSpec& input_at(std::size_t i) const { return i == 0 ? input : more_inputs[i - 1]; }
  bool has_mask() const { return !more_inputs.empty() && more_inputs.front().name == "mask"; }
};

namespace detail {

// A shape in a message: "[B, T, 384]".
inline std::string format_item(const std::vector<std::int64_t>& shape) {
  std::vector<std::string> sizes;
  for (const std::int64_t size : shape) {
    sizes.push_back(size != kFree ? std::to_string(size) : sizes.empty() ? "B" : "T");
  }
  return format_list(sizes);
}

}  // namespace detail
}  // namespace regplug
