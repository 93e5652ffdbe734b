// Which tokens a mask may leave out, checked on every call. Allocates nothing when the mask fits. Includes no torch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "regplug/manifest.h"

namespace regplug::detail {

// The places [start:stop] of a sequence of this length, as in Python.
inline std::pair<std::int64_t, std::int64_t> places_of(const PartRecord& part, std::int64_t length) {
  const auto place = [&](std::int64_t position) {
    return std::clamp<std::int64_t>(position < 0 ? position + length : position, 0, length);
  };
  return {place(part.start), place(part.stop.value_or(length))};
}

// A mask of bool [B, T] in the caller's memory, which may hold other bytes than 0 and 1.
class MaskBytes {
 public:
  // Sizes and strides have two numbers each.
  MaskBytes(const char* data, const std::int64_t* sizes, const std::int64_t* strides)
      : data_(data), batch_(sizes[0]), length_(sizes[1]), row_(strides[0]), step_(strides[1]) {}

  std::int64_t batch() const { return batch_; }
  std::int64_t length() const { return length_; }

  unsigned char at(std::int64_t sample, std::int64_t place) const {
    return static_cast<unsigned char>(data_[sample * row_ + place * step_]);
  }

  // All bits that are set in the tokens [begin, end) of a sample.
  unsigned char bits(std::int64_t sample, std::int64_t begin, std::int64_t end) const {
    std::uint64_t found = 0;
    constexpr std::int64_t word = sizeof found;
    for (; step_ == 1 && begin + word <= end; begin += word) {
      std::uint64_t part = 0;
      std::memcpy(&part, data_ + sample * row_ + begin, sizeof part);
      found |= part;
    }
    for (; begin < end; ++begin) found |= at(sample, begin);
    for (const int half : {32, 16, 8}) found |= found >> half;
    return static_cast<unsigned char>(found);
  }

 private:
  const char* data_;
  std::int64_t batch_;
  std::int64_t length_;
  std::int64_t row_;
  std::int64_t step_;
};

// The tokens that the module reads, one after another or at the layout's indices.
struct TokensRead {
  std::int64_t first;
  std::int64_t count;
  const std::vector<std::int64_t>* indices;  // null: they are adjacent
};

// `length` is at least the manifest's `min_tokens`.
inline TokensRead tokens_read(const Manifest& manifest, std::int64_t length) {
  if (!manifest.is_conditioner()) return {0, length, nullptr};
  const LayoutRecord& layout = *manifest.layout;
  if (!layout.start) return {0, static_cast<std::int64_t>(layout.indices.size()), &layout.indices};
  const std::int64_t first = *layout.start < 0 ? length + *layout.start : *layout.start;
  return {first, layout.num_registers == 0 ? length - first : layout.num_registers, nullptr};
}

// The first sample in which no token of [begin, end) counts, or, if `all`, not every one; the batch when there is none.
inline std::int64_t sample_with_padding(const MaskBytes& mask, const TokensRead& read, std::int64_t begin,
                                        std::int64_t end, bool all) {
  for (std::int64_t sample = 0; sample < mask.batch(); ++sample) {
    if (read.indices == nullptr && !all) {
      if (mask.bits(sample, read.first + begin, read.first + end) == 0) return sample;
      continue;
    }
    bool good = all;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::size_t place = static_cast<std::size_t>(i);
      const bool counts = mask.at(sample, read.indices == nullptr ? read.first + i : (*read.indices)[place]) != 0;
      good = all ? good && counts : good || counts;
    }
    if (!good) return sample;
  }
  return mask.batch();
}

// What is wrong with a mask, for a message that names it; empty when it leaves tokens to every sample and every part.
inline std::string mask_fault(const Manifest& manifest, const MaskBytes& mask) {
  for (std::int64_t sample = 0; sample < mask.batch(); ++sample) {
    if (mask.bits(sample, 0, mask.length()) <= 1) continue;
    std::int64_t place = 0;
    while (mask.at(sample, place) <= 1) ++place;
    return "expected bytes 0 and 1, got " + std::to_string(mask.at(sample, place)) + ".";
  }
  const TokensRead read = tokens_read(manifest, mask.length());
  const auto none_in = [](const std::string& of, std::int64_t sample) {
    return "expected a token" + of + " that counts in every sample, got none in sample " + std::to_string(sample) + ".";
  };
  if (manifest.parts.empty()) {
    const std::int64_t sample = sample_with_padding(mask, read, 0, read.count, false);
    return sample == mask.batch() ? std::string() : none_in("", sample);
  }
  for (const PartRecord& part : manifest.parts) {
    if (part.is_vector) continue;
    const auto [begin, end] = places_of(part, read.count);
    const std::int64_t sample = sample_with_padding(mask, read, begin, end, !part.takes_mask);
    if (sample == mask.batch()) continue;
    if (part.takes_mask) return none_in(" of '" + part.name + "'", sample);
    return "expected every token of '" + part.name + "' to count, which takes no mask, got padding in sample " +
           std::to_string(sample) + ".";
  }
  return {};
}

}  // namespace regplug::detail
