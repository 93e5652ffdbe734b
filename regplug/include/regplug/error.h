// The one exception that leaves this library (besides std::bad_alloc), and how its messages are formatted.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "regplug/detail/message.h"

namespace regplug {

// Message: `OBJECT: expected WHAT, got VALUE[; use FIX].`, one line of at most 400 characters, even when it quotes
// foreign text. The Python package gives the same messages.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& text) : std::runtime_error(detail::clip(detail::escape(text))) {}

 protected:
  struct Whole {};
  Error(Whole, const std::string& text) : std::runtime_error(text) {}
};

namespace detail {

// An error that does not name its object yet. The code that catches it prepends the object and throws an Error, which
// clips the message once.
class Fault : public Error {
 public:
  explicit Fault(const std::string& text) : Error(Whole{}, text) {}
};

// A numeric error or tolerance: three significant digits, like Python's "%.3g".
inline std::string format_number(double value) { return format_digits(value, 3); }

inline std::string format_item(const std::string& value) { return value; }
inline std::string format_item(std::int64_t value) { return std::to_string(value); }

// "[a, b]", for names or the sizes of a shape.
template <typename Items>
std::string format_list(const Items& items) {
  std::string text;
  for (const auto& item : items) text += (text.empty() ? "" : ", ") + format_item(item);
  return "[" + text + "]";
}

// The keys of a map, in its order.
template <typename Map>
std::vector<std::string> keys_of(const Map& map) {
  std::vector<std::string> names;
  for (const auto& item : map) names.push_back(item.first);
  return names;
}

}  // namespace detail
}  // namespace regplug
