// Strict, typed access to one JSON object: exactly the given keys, each of the expected type.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "regplug/detail/strict_json.h"
#include "regplug/error.h"

namespace regplug::detail {

constexpr std::int64_t kMaxInteger = (std::int64_t{1} << 53) - 1;  // larger ones differ between languages

constexpr std::string_view kNameLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

inline bool is_of(std::string_view text, std::string_view letters) {
  return !text.empty() && text.size() <= 128 && text.find_first_not_of(letters) == std::string_view::npos;
}

inline bool is_name(std::string_view name) { return is_of(name, kNameLetters); }

inline bool is_full_name(std::string_view name) {  // distribution:name
  const std::size_t colon = name.find(':');
  return colon != std::string_view::npos && is_name(name.substr(0, colon)) && is_name(name.substr(colon + 1));
}

inline bool is_file_name(std::string_view name) {  // never a path, never hidden
  return is_name(name) && std::string_view("._-").find(name.front()) == std::string_view::npos;
}

inline bool is_option(std::string_view name) {  // a keyword of a constructor
  constexpr std::string_view letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789";
  return is_of(name, letters) && letters.find(name.front()) < letters.find('0');
}

inline bool is_input_name(std::string_view name) {
  constexpr std::string_view letters = "abcdefghijklmnopqrstuvwxyz_0123456789";
  return is_of(name, letters) && name.size() <= 64 && letters.find(name.front()) < letters.find('_');
}

inline bool is_version(std::string_view text) {
  static const std::string letters = std::string(kNameLetters) + "+!";
  return is_of(text, letters);
}

inline bool is_printable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char letter) { return letter >= ' ' && letter <= '~'; });
}

inline bool is_sha256(std::string_view text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// JSON with sorted keys, in ASCII; numbers other than integers with twelve digits, so that both languages agree. Bytes
// that are not UTF-8, which names in memory may have, are replaced.
inline std::string compact(const Json& value) {
  std::string text;
  if (value.is_object()) {
    for (const auto& [key, item] : value.items()) {
      text += (text.empty() ? "" : ",") + compact(Json(key)) + ":" + compact(item);
    }
    return "{" + text + "}";
  }
  if (value.is_array()) {
    for (const Json& item : value) text += (text.empty() ? "" : ",") + compact(item);
    return "[" + text + "]";
  }
  if (!value.is_number_float()) return value.dump(-1, ' ', true, Json::error_handler_t::replace);
  text = format_digits(value.get<double>(), 12);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

// A value in a message, at most 60 characters.
inline std::string format_value(const Json& value) { return truncate(compact(value)); }

// A key in a message; a plain name stays as it is.
inline std::string format_key(const std::string& key) { return is_name(key) ? key : format_value(key); }

[[noreturn]] inline void wrong_value(const std::string& key, const std::string& expected, const Json& got) {
  throw Fault(key + (key.empty() ? "expected " : ": expected ") + expected + ", got " + format_value(got));
}

// An integer in plain digits, `least` <= value <= kMaxInteger; nothing for any other value, such as -0 and 1.0.
inline std::optional<std::int64_t> plain_integer(const Json& value, std::int64_t least) {
  std::optional<std::int64_t> number;
  if (value.is_number_unsigned()) {
    if (value.get<std::uint64_t>() <= std::uint64_t{kMaxInteger}) number = value.get<std::int64_t>();
  } else if (value.is_number_integer() && value.get<std::int64_t>() < 0) {
    number = value.get<std::int64_t>();
  }
  return number && *number >= least ? number : std::nullopt;
}

// A JSON object with exactly the given keys. Throws Fault, "KEY: expected WHAT, got VALUE", where KEY is the path from
// the top: "input.shape", "golden.cases.0.case".
class Fields {
 public:
  Fields(std::string where, const Json& object, const std::vector<const char*>& keys)
      : where_(std::move(where)), object_(object) {
    if (!object_.is_object()) wrong_value(where_, "an object", object_);
    for (const char* key : keys) {
      if (!object_.contains(key)) throw Fault(path(key) + ": expected a value, got nothing");
    }
    for (const auto& [key, value] : object_.items()) {
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
        wrong_value(path(format_key(key)), "no such key", value);
      }
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
    if (!at(key).is_boolean()) wrong_value(path(key), "true or false", at(key));
    return at(key).get<bool>();
  }

  std::optional<bool> maybe_boolean(const std::string& key) const {
    if (at(key).is_null()) return std::nullopt;
    return boolean(key);
  }

  double amount(const std::string& key) const {
    if (!at(key).is_number() || at(key).get<double>() < 0) wrong_value(path(key), "a number >= 0", at(key));
    return at(key).get<double>();
  }

  std::string name(const std::string& key) const { return matching(key, "a plain name", is_name); }
  std::string version(const std::string& key) const { return matching(key, "a version", is_version); }

  std::string one_of(const std::string& key, std::initializer_list<std::string> known) const {
    return matching(key, "one of " + format_list(known), [&](const std::string& value) {
      return std::find(known.begin(), known.end(), value) != known.end();
    });
  }

  template <typename Accepts>
  std::string matching(const std::string& key, const std::string& expected, Accepts accepts) const {
    if (!at(key).is_string() || !accepts(at(key).get<std::string>())) wrong_value(path(key), expected, at(key));
    return at(key).get<std::string>();
  }

  // An object with any values; its keys are names of options.
  const Json& options(const std::string& key) const {
    each_in(key, "an option's name", is_option, [](const std::string&, const std::string&, const Json&) {});
    return at(key);
  }

  Fields inside(const std::string& key, const std::vector<const char*>& keys) const {
    return Fields(path(key), at(key), keys);
  }

  // Calls `read(path, element)` for each element of a list.
  template <typename Read>
  void each_of(const std::string& key, Read read) const {
    const Json& list = at(key);
    if (!list.is_array()) wrong_value(path(key), "a list", list);
    for (std::size_t i = 0; i < list.size(); ++i) read(path(key) + "." + std::to_string(i), list[i]);
  }

  // Calls `read(path, name, value)` for each key of an object; `accepts(name)` must hold for every key.
  template <typename Accepts, typename Read>
  void each_in(const std::string& key, const std::string& expected, Accepts accepts, Read read) const {
    if (!at(key).is_object()) wrong_value(path(key), "an object", at(key));
    for (const auto& [name, value] : at(key).items()) {
      if (!accepts(name)) wrong_value(path(key), expected, name);
      read(path(key) + "." + name, name, value);
    }
  }

  static std::int64_t as_integer(const std::string& where, const Json& value, std::int64_t least) {
    const std::optional<std::int64_t> number = plain_integer(value, least);
    if (!number) wrong_value(where, least >= 0 ? "an integer >= " + std::to_string(least) : "an integer", value);
    return *number;
  }

 private:
  std::string where_;
  const Json& object_;
};

}  // namespace regplug::detail
