// The one exception that leaves this library (std::bad_alloc aside), and how its messages are written.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "regplug/detail/message.h"

namespace regplug {

// Message: `OBJECT: expected WHAT, got VALUE[; use FIX].` on one line of at most 400 characters, also where it quotes
// a stranger; the Python package writes the same one.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& text) : std::runtime_error(detail::shortened(detail::printable(text))) {}

 protected:
  struct Whole {};
  Error(Whole, const std::string& text) : std::runtime_error(text) {}
};

namespace detail {

// A fault that does not name its object yet. The code that catches it puts the object in front and throws an Error,
// which shortens the message once.
class Fault : public Error {
 public:
  explicit Fault(const std::string& text) : Error(Whole{}, text) {}
};

// A numeric error or tolerance: three significant digits, as Python's "%.3g".
inline std::string number(double value) { return digits(value, 3); }

inline std::string word(const std::string& value) { return value; }
inline std::string word(std::int64_t value) { return std::to_string(value); }

// "[a, b]": names, or the sizes of a shape.
template <typename Items>
std::string listed(const Items& items) {
  std::string text;
  for (const auto& item : items) text += (text.empty() ? "" : ", ") + word(item);
  return "[" + text + "]";
}

// The keys of a map, sorted as it is.
template <typename Map>
std::vector<std::string> names_of(const Map& map) {
  std::vector<std::string> names;
  for (const auto& item : map) names.push_back(item.first);
  return names;
}

// What other libraries report runs over many lines (stack traces, backtraces); the first says what happened.
inline std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace detail
}  // namespace regplug
