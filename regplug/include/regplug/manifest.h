// manifest.json as types; docs/bundle.md has the table they follow, key by key.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "regplug/detail/strict_json.h"
#include "regplug/error.h"

namespace regplug {

// A size that each call chooses: B, and T where the layout leaves it open.
constexpr std::int64_t kFree = -1;

struct Signature {
  std::string name;
  std::string dtype;                // torch's name: "float32"
  std::vector<std::int64_t> shape;  // kFree for "B" and "T"
};

struct Layout {
  std::int64_t num_registers = 0;
  std::int64_t hidden_dim = 0;
  std::optional<std::int64_t> start;  // negative counts from the end; not set where `indices` say it
  std::vector<std::int64_t> indices;
  std::optional<std::int64_t> num_tokens;
  std::optional<bool> normalized;
};

struct Film {
  std::string generator;
  Json options;
  std::string form;   // "gamma" or "1+gamma"
  std::string order;  // "gamma-first"
};

// The backbone in front of the readout.
struct Backbone {
  std::string name;
  std::optional<std::string> model;
  Json options;
  bool normalized = false;  // whether its final norm is applied
};

struct GoldenCase {
  std::string name;
  std::int64_t batch = 0;
  std::optional<std::int64_t> start;  // set where the stored input is wider: the case is [:, start:start+length]
  std::int64_t length = 0;
  double eager_error = 0;
  double tolerance = 0;
};

struct ProgramCase {
  double error = 0;
  double tolerance = 0;
};

struct Program {
  std::string backend;
  std::string file;
  std::map<std::string, std::string> properties;
  std::map<std::string, ProgramCase> cases;
};

struct FileEntry {
  std::uint64_t size = 0;
  std::string sha256;
};

struct Provenance {
  std::map<std::string, std::string> packages;  // what the module is made of: distribution to version
  std::string torch;
  std::string python;
  std::string cpu;
};

struct Manifest {
  std::string holds;  // "readout" or "conditioner"
  std::string strategy;
  std::int64_t num_registers = 0;
  std::int64_t hidden_dim = 0;
  Json options;
  std::int64_t cond_dim = 0;
  std::optional<Layout> layout;
  std::optional<Film> film;
  std::optional<Backbone> backbone;  // set where the input is images
  Signature input;
  std::int64_t min_batch = 0;
  std::int64_t min_tokens = 0;  // 0 unless the input is tokens
  std::vector<Signature> outputs;
  std::string truth;  // "float64" or "eager"
  std::vector<GoldenCase> cases;
  std::vector<Program> programs;
  std::map<std::string, FileEntry> files;
  Provenance provenance;
  Json json;  // as it was written

  bool is_conditioner() const { return holds == "conditioner"; }
};

namespace detail {

// A shape inside a message: "[B, T, 384]".
inline std::string word(const std::vector<std::int64_t>& shape) {
  std::vector<std::string> sizes;
  for (const std::int64_t size : shape) {
    sizes.push_back(size != kFree ? std::to_string(size) : sizes.empty() ? "B" : "T");
  }
  return listed(sizes);
}

}  // namespace detail
}  // namespace regplug
