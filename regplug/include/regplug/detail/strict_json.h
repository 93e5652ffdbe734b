// The strict JSON parser of manifests and safetensors headers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "regplug/error.h"

namespace regplug {

using Json = nlohmann::json;

namespace detail {

// Empties a value without memory. The destructor of a list or object that is not empty allocates, and where there is no
// memory it ends the process.
inline void free_items(Json& value) noexcept {
  if (!value.is_structured()) return;
  for (Json& item : value) free_items(item);
  value.clear();
}

// Empties a local value at the end of its scope.
struct FreeAtEnd {
  explicit FreeAtEnd(Json& freed) : value(freed) {}
  FreeAtEnd(const FreeAtEnd&) = delete;
  FreeAtEnd& operator=(const FreeAtEnd&) = delete;
  ~FreeAtEnd() { free_items(value); }
  Json& value;
};

// Comparing a value with a text makes another value, which ends the process where there is no memory.
inline bool is_text(const Json& value, std::string_view text) {
  return value.is_string() && value.get_ref<const std::string&>() == text;
}

// At most 60 characters of foreign text, for a message.
inline std::string truncate(const std::string& text) {
  constexpr std::size_t kMaxShown = 60;
  return text.size() <= kMaxShown ? text : text.substr(0, kMaxShown) + "...";
}

// 'name' in a message, escaped to ASCII as in JSON.
inline std::string quote(const std::string& name) {
  const std::string text = Json(name).dump(-1, ' ', true, Json::error_handler_t::replace);
  return "'" + truncate(text.substr(1, text.size() - 2)) + "'";
}

// A separate type, because safetensors has its own rule for it.
class DuplicateKey : public Fault {
 public:
  using Fault::Fault;
};

// Rejects deep nesting and very many values before any parser sees them. Brackets and commas in strings do not count.
inline void check_brackets(std::string_view text) {
  constexpr std::size_t kMaxDepth = 64;
  constexpr std::size_t kMaxMarks = std::size_t{1} << 17;
  std::size_t depth = 0;
  std::size_t deepest = 0;
  std::size_t marks = 0;
  bool inside = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char letter = text[i];
    if (inside) {
      if (letter == '\\') ++i;
      inside = letter != '"';
    } else if (letter == '[' || letter == '{') {
      ++marks;
      deepest = std::max(deepest, ++depth);
    } else if (letter == ']' || letter == '}') {
      ++marks;
      if (depth > 0) --depth;
    } else {
      marks += letter == ',';
      inside = letter == '"';
    }
  }
  if (marks > kMaxMarks) {
    throw Fault("expected at most " + std::to_string(kMaxMarks) + " brackets and commas, got " + std::to_string(marks));
  }
  if (deepest > kMaxDepth) throw Fault("nested deeper than " + std::to_string(kMaxDepth));
}

// Builds the value from the parser's events, because nlohmann's builder keeps the last of two equal keys.
class StrictJson final : public nlohmann::json_sax<Json> {
 public:
  Json take() { return std::move(root_); }

  bool null() override { return add(nullptr) != nullptr; }
  bool boolean(bool value) override { return add(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return add(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return add(value) != nullptr; }
  bool number_float(number_float_t value, const string_t&) override { return add(value) != nullptr; }
  bool string(string_t& value) override { return add(std::move(value)) != nullptr; }
  bool binary(binary_t&) override { return false; }  // never in JSON text
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    if (open_.back()->contains(name)) throw DuplicateKey("duplicate key " + detail::quote(name));
    key_ = std::move(name);
    return true;
  }

  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override {
    throw Fault("not JSON");
  }

 private:
  Json* add(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    Json& place = parent.is_array() ? parent.emplace_back() : parent[key_];
    place = std::move(value);
    return &place;
  }

  bool open(Json container) {
    open_.push_back(add(std::move(container)));
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  Json root_;
  FreeAtEnd freed_{root_};
  std::string key_;
  std::vector<Json*> open_;  // stays valid: a container grows only while it is the innermost open one
};

// Parses one JSON value. A number in plain digits is `is_number_unsigned()`; 1.0 and 1e3 are not. Throws Fault. The
// checks have the same order as in Python, so that a text with several faults gives one message.
inline Json parse_json(std::string_view text) {
  // The parser skips a byte order mark and stops at NUL; both would leave bytes unread.
  if (text.substr(0, 3) == "\xEF\xBB\xBF") throw Fault("not JSON: begins with a byte order mark");
  check_brackets(text);
  if (text.find('\0') != std::string_view::npos || !Json::accept(text)) throw Fault("not JSON");
  StrictJson builder;
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

}  // namespace detail
}  // namespace regplug
