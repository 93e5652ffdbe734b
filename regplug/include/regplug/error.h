// The one exception that leaves this library (std::bad_alloc aside), and how its messages are written.
#pragma once

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace regplug {

// Message: `OBJECT: expected WHAT, got VALUE[; use FIX].` on one line; the Python package words it the same way.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace detail {

// A numeric error or tolerance: three significant digits, as Python's "%.3g".
inline std::string number(double value) {
  if (value != value) return "nan";  // printf would show its sign bit
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

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
