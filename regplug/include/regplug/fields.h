// Typed, strict reading of one JSON object: exactly the keys asked for, each of the type asked for.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "regplug/error.h"
#include "regplug/json.h"

namespace regplug::detail {

constexpr std::int64_t kLargest = std::int64_t{1} << 53;  // integers beyond are not the same in every language

constexpr std::string_view kNameLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

inline bool is_name(std::string_view name) {
  return !name.empty() && name.find_first_not_of(kNameLetters) == std::string_view::npos;
}

inline bool is_full_name(std::string_view name) {  // distribution:name
  const std::size_t colon = name.find(':');
  return colon != std::string_view::npos && is_name(name.substr(0, colon)) && is_name(name.substr(colon + 1));
}

inline bool is_file_name(std::string_view name) {  // never a path, never hidden
  return is_name(name) && name.size() <= 128 && std::string_view("._-").find(name.front()) == std::string_view::npos;
}

inline bool is_sha256(std::string_view text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// A value inside a message: compact JSON on one line, 60 characters of it at most.
inline std::string shown(const Json& value) {
  constexpr std::size_t kShown = 60;
  const std::string text = value.dump(-1, ' ', true);
  return text.size() <= kShown ? text : text.substr(0, kShown) + "...";
}

[[noreturn]] inline void wrong(const std::string& key, const std::string& expected, const Json& got) {
  throw Error(key + (key.empty() ? "expected " : ": expected ") + expected + ", got " + shown(got));
}

// An integer in plain digits, `least` <= value < 2^53; not set for any other value. "-0" and "1.0" are not plain.
inline std::optional<std::int64_t> plain_integer(const Json& value, std::int64_t least) {
  std::optional<std::int64_t> number;
  if (value.is_number_unsigned()) {
    if (value.get<std::uint64_t>() < std::uint64_t{kLargest}) number = value.get<std::int64_t>();
  } else if (value.is_number_integer() && value.get<std::int64_t>() < 0) {
    number = value.get<std::int64_t>();
  }
  return number && *number >= least ? number : std::nullopt;
}

// An object whose keys are exactly those given. Throws Error, "KEY: expected WHAT, got VALUE", where KEY is the path
// from the top: "input.shape", "golden.cases.0.case".
class Fields {
 public:
  Fields(std::string where, const Json& object, std::initializer_list<const char*> keys)
      : where_(std::move(where)), object_(object) {
    if (!object_.is_object()) wrong(where_, "an object", object_);
    for (const char* key : keys) {
      if (!object_.contains(key)) throw Error(path(key) + ": expected a value, got nothing");
    }
    for (const auto& [key, value] : object_.items()) {
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) wrong(path(key), "no such key", value);
    }
  }

  std::string path(const std::string& key) const { return where_.empty() ? key : where_ + "." + key; }
  const Json& at(const std::string& key) const { return object_.at(key); }

  std::int64_t integer(const std::string& key, std::int64_t least) const {
    return as_integer(path(key), at(key), least);
  }

  std::optional<std::int64_t> maybe_integer(const std::string& key, std::int64_t least) const {
    if (at(key).is_null()) return std::nullopt;
    return integer(key, least);
  }

  bool boolean(const std::string& key) const {
    if (!at(key).is_boolean()) wrong(path(key), "true or false", at(key));
    return at(key).get<bool>();
  }

  std::optional<bool> maybe_boolean(const std::string& key) const {
    if (at(key).is_null()) return std::nullopt;
    return boolean(key);
  }

  double amount(const std::string& key) const {
    if (!at(key).is_number() || at(key).get<double>() < 0) wrong(path(key), "a number >= 0", at(key));
    return at(key).get<double>();
  }

  std::string text(const std::string& key) const {
    return matching(key, "a string", [](const std::string&) { return true; });
  }

  std::string one_of(const std::string& key, std::initializer_list<std::string> known) const {
    return matching(key, "one of " + listed(known), [&](const std::string& value) {
      return std::find(known.begin(), known.end(), value) != known.end();
    });
  }

  template <typename Accepts>
  std::string matching(const std::string& key, const std::string& expected, Accepts accepts) const {
    if (!at(key).is_string() || !accepts(at(key).get<std::string>())) wrong(path(key), expected, at(key));
    return at(key).get<std::string>();
  }

  const Json& object(const std::string& key) const {
    if (!at(key).is_object()) wrong(path(key), "an object", at(key));
    return at(key);
  }

  Fields inside(const std::string& key, std::initializer_list<const char*> keys) const {
    return Fields(path(key), at(key), keys);
  }

  // Calls `read(path, element)` for each element of a list.
  template <typename Read>
  void each_of(const std::string& key, Read read) const {
    const Json& list = at(key);
    if (!list.is_array()) wrong(path(key), "a list", list);
    for (std::size_t i = 0; i < list.size(); ++i) read(path(key) + "." + std::to_string(i), list[i]);
  }

  // Calls `read(path, name, value)` for each key of an object with free keys.
  template <typename Read>
  void each_in(const std::string& key, Read read) const {
    for (const auto& [name, value] : object(key).items()) read(path(key) + "." + name, name, value);
  }

  static std::int64_t as_integer(const std::string& where, const Json& value, std::int64_t least) {
    const std::optional<std::int64_t> number = plain_integer(value, least);
    if (!number) wrong(where, least >= 0 ? "an integer >= " + std::to_string(least) : "an integer", value);
    return *number;
  }

 private:
  std::string where_;
  const Json& object_;
};

}  // namespace regplug::detail
