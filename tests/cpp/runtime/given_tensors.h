// The inputs of a call as a caller gives them, in memory of exactly their size, and the rules that they must fit.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <regplug/regplug.h>

#include "fuzz_input.h"

namespace fuzz {

constexpr std::int64_t kMaxBytes = 1 << 14;                       // of a tensor that is made here
constexpr std::int64_t kItem[] = {8, 4, 2, 2, 8, 4, 2, 1, 1, 1};  // bytes, by dtype
constexpr std::size_t kInputs = 4;
constexpr const char* kNames[kInputs] = {"tokens", "mask", "state", "time"};
constexpr std::int32_t kDtypes[kInputs] = {REGPLUG_FLOAT32, REGPLUG_BOOL, REGPLUG_FLOAT32, REGPLUG_FLOAT32};

// Or a limit, so that no sum of such numbers overflows.
inline Wide limited(Wide number) {
  constexpr Wide most = Wide{1} << 100;
  return std::clamp(number, -most, most);
}

// A tensor as a caller gives it, and its memory.
struct Given {
  std::string name;
  bool has_name = true;
  std::int32_t dtype = 0;
  Numbers sizes;
  Numbers strides;
  bool in_c_order = true;  // the strides are not passed
  bool has_sizes = true;
  std::vector<char> block;
  char* data = nullptr;
  bool has_memory = false;
  bool may_overflow = false;  // sizes or strides that a view may refuse, or must
  bool overflows = false;

  std::int64_t item() const { return dtype < 0 || dtype > 9 ? 1 : kItem[dtype]; }

  Wide items() const {
    Wide all = 1;
    for (const std::int64_t size : sizes) all = limited(all * std::clamp<Wide>(size, -1, 1 << 20));
    return all;
  }

  char* at(const Numbers& place) const {
    std::int64_t offset = 0;
    for (std::size_t i = 0; i < place.size(); ++i) offset += place[i] * strides[i];
    return data + offset * item();
  }

  regplug_tensor tensor() const {
    return {has_name ? name.c_str() : nullptr, dtype,
            static_cast<std::uint32_t>(sizes.size()), has_sizes ? sizes.data() : nullptr,
            in_c_order ? nullptr : strides.data(), data};
  }
};

inline void set_c_order(Given& one) {
  one.strides.assign(one.sizes.size(), 1);
  Wide next = 1;
  for (std::size_t i = one.sizes.size(); i-- > 0;) {
    one.strides[i] = static_cast<std::int64_t>(next);
    next = std::min<Wide>(next * std::max<std::int64_t>(one.sizes[i], 1), kLargest);
  }
}

// A block of exactly the bytes between the first and the last item; one byte if there is no such memory.
inline void allocate(Given& one, bool unaligned) {
  Wide below = 0;
  Wide above = one.item();
  for (std::size_t i = 0; i < one.sizes.size(); ++i) {
    const Wide step = Wide{one.strides[i]} * one.item();
    const bool is_small = one.sizes[i] <= kMaxBytes && step <= kMaxBytes && step >= -kMaxBytes;
    one.may_overflow = one.may_overflow || !is_small;
    const Wide last = std::max<Wide>(Wide{one.sizes[i]} - 1, 0);
    const Wide reach = limited(last * one.strides[i]) * one.item();
    (reach < 0 ? below : above) += reach;
  }
  if (one.items() == 0) below = above = 0;
  one.has_memory = above - below <= kMaxBytes;
  one.overflows = above - below > Wide{1} << 66;
  const auto bytes = static_cast<std::size_t>(one.has_memory ? above - below : 1);
  one.block.assign(bytes + unaligned, 0);
  one.block.shrink_to_fit();
  one.data = one.block.data() + (one.has_memory ? static_cast<std::int64_t>(-below) : 0) + unaligned;
}

// The call's inputs fit the bundle: the rules of its manifest, written once more.
class Expected {
 public:
  explicit Expected(const std::vector<const Given*>& given) {
    for (const Given* one : given) {
      for (std::size_t i = 0; i < kInputs; ++i) {
        if (one->has_name && one->name == kNames[i] && inputs_[i] == nullptr) inputs_[i] = one;
      }
    }
    const bool all = given.size() == kInputs && std::count(inputs_.begin(), inputs_.end(), nullptr) == 0;
    signatures_ = all && signatures_fit();
  }

  bool signatures() const { return signatures_; }
  const Given& operator[](std::size_t i) const { return *inputs_[i]; }
  std::int64_t batch() const { return inputs_[0]->sizes[0]; }
  std::int64_t length() const { return inputs_[0]->sizes[1]; }
  std::uint8_t mask_at(std::int64_t sample, std::int64_t token) const {
    return static_cast<std::uint8_t>(*inputs_[1]->at({sample, token}));
  }

  // The mask leaves the class token, all four registers, which take no mask, and a patch, in every sample.
  bool mask() const {
    bool good = true;
    for (std::int64_t sample = 0; sample < batch(); ++sample) {
      bool patch = false;
      for (std::int64_t token = 0; token < length(); ++token) {
        const std::uint8_t byte = mask_at(sample, token);
        good = good && byte <= 1 && (token >= 5 || byte == 1);
        patch = patch || (token >= 5 && byte == 1);
      }
      good = good && patch;
    }
    return good;
  }

 private:
  bool signatures_fit() const {
    for (std::size_t i = 0; i < kInputs; ++i) {
      const Given& one = *inputs_[i];
      if (one.dtype != kDtypes[i] || !one.has_sizes || one.sizes.size() != (i == 0 ? 3U : 2U)) return false;
      if (one.data == nullptr && one.items() != 0) return false;
    }
    const Numbers& sizes = inputs_[0]->sizes;
    return sizes[0] >= 0 && sizes[1] >= 6 && sizes[2] == 6 && inputs_[1]->sizes == Numbers{sizes[0], sizes[1]} &&
           inputs_[2]->sizes == Numbers{sizes[0], 3} && inputs_[3]->sizes == Numbers{sizes[0], 1};
  }

  std::array<const Given*, kInputs> inputs_{};
  bool signatures_ = false;
};

}  // namespace fuzz
