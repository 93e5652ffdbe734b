// What the fuzz targets here have in common: the drawn input, and how a property is held.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <limits>
#include <vector>

namespace fuzz {

using Numbers = std::vector<std::int64_t>;
__extension__ using Wide = __int128;

constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kExtremes[] = {
    -1, -2, std::numeric_limits<std::int64_t>::min(), kLargest, kLargest - 1, 1LL << 62, 1LL << 61, 1LL << 60,
    (1LL << 60) - 1, 1LL << 59, 1LL << 40, 1LL << 32, (1LL << 31) - 1, 1LL << 31, 65, 1024};

inline void hold(bool holds, const char* what) {
  if (holds) return;
  std::cerr << "does not hold: " << what << "\n";
  std::abort();
}

// `seldom`: one in how many numbers is replaced by any other.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size, unsigned seldom)
      : next_(data), end_(data + size), seldom_(seldom) {}

  bool empty() const { return next_ == end_; }
  std::uint8_t byte() { return empty() ? std::uint8_t{0} : *next_++; }
  bool one_in(unsigned many) { return byte() % many == many - 1; }  // 0, which ends every input, is never drawn
  std::int64_t upto(std::int64_t most) { return byte() % (most + 1); }
  std::int64_t any() {
    if (!one_in(4)) return kExtremes[byte() % std::size(kExtremes)];
    std::uint64_t number = 0;
    for (int i = 0; i < 8; ++i) number = number << 8 | byte();
    return static_cast<std::int64_t>(number);
  }
  // Most times the number itself.
  std::int64_t perhaps(std::int64_t number) { return one_in(seldom_) ? any() : number; }
  std::int32_t perhaps_32(std::int32_t number) {
    return one_in(seldom_) ? static_cast<std::int32_t>(any()) : number;
  }

 private:
  const std::uint8_t* next_;
  const std::uint8_t* end_;
  unsigned seldom_;
};

}  // namespace fuzz
