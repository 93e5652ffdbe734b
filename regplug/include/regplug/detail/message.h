// Formats parts of messages: no control characters, at most 400 characters, numbers independent of the locale.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iomanip>
#include <iterator>
#include <locale>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

namespace regplug::detail {

// A number with this many significant digits, like printf's %g in the C locale, in any locale of the host.
inline std::string format_digits(double value, int precision) {
  if (value != value) return "nan";  // without its sign bit, which printf would show
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text << std::setprecision(precision) << value;
  return text.str();
}

// The first code point of `text` and its length in bytes; length 0 when the text does not begin with valid UTF-8.
inline std::pair<std::uint32_t, std::size_t> code_point(std::string_view text) {
  const auto byte = [&](std::size_t i) { return std::uint32_t{static_cast<unsigned char>(text[i])}; };
  const std::uint32_t first = byte(0);
  if (first < 0x80) return {first, 1};
  const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || length > text.size()) return {first, 0};
  std::uint32_t code = first & (0x7FU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {first, 0};
    code = code << 6 | (byte(i) & 0x3F);
  }
  const bool too_long = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  if (too_long || (code >= 0xD800 && code < 0xE000) || code > 0x10FFFF) return {first, 0};
  return {code, length};
}

// Whether a terminal would execute it, or hide or reorder text.
inline bool is_control(std::uint32_t code) {
  constexpr std::array<std::pair<std::uint32_t, std::uint32_t>, 7> ranges{{{0x00, 0x1F},
                                                                           {0x7F, 0x9F},
                                                                           {0x061C, 0x061C},
                                                                           {0x200B, 0x200F},
                                                                           {0x2028, 0x202E},
                                                                           {0x2060, 0x206F},
                                                                           {0xFEFF, 0xFEFF}}};
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const auto& range) { return range.first <= code && code <= range.second; });
}

// As in a string literal: \n, \x1b, \u202e.
inline std::string escape_code_point(std::uint32_t code) {
  if (code == '\t') return "\\t";
  if (code == '\n') return "\\n";
  if (code == '\r') return "\\r";
  constexpr std::string_view hex = "0123456789abcdef";
  std::string text = code < 0x100 ? "\\x" : "\\u";
  for (std::uint32_t shift = code < 0x100 ? 8 : 16; shift > 0; shift -= 4) text += hex[code >> (shift - 4) & 15];
  return text;
}

// Escapes control characters and bytes that are not UTF-8.
inline std::string escape(std::string_view text) {
  std::string shown;
  shown.reserve(text.size());
  while (!text.empty()) {
    const auto [code, length] = code_point(text);
    const std::size_t taken = std::max<std::size_t>(length, 1);
    if (length == 0 || is_control(code)) {
      shown += escape_code_point(code);
    } else {
      shown += text.substr(0, taken);
    }
    text.remove_prefix(taken);
  }
  return shown;
}

// Cuts the middle out of a UTF-8 text that is too long for a message.
inline std::string clip(std::string text) {
  constexpr std::size_t kMaxMessage = 400;
  constexpr std::size_t kBegin = 300;
  constexpr std::size_t kEnd = 97;
  if (text.size() <= kMaxMessage) return text;
  const auto begins = [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; };
  auto count = static_cast<std::size_t>(std::count_if(text.begin(), text.end(), begins));
  if (count <= kMaxMessage) return text;
  // the position of the character at this index
  const auto place_of = [&](std::size_t index) {
    std::size_t seen = 0;
    const auto found =
        std::find_if(text.begin(), text.end(), [&](char byte) { return begins(byte) && seen++ == index; });
    return static_cast<std::size_t>(std::distance(text.begin(), found));
  };
  return text.substr(0, place_of(kBegin)) + "..." + text.substr(place_of(count - kEnd));
}

}  // namespace regplug::detail
