// Tensors of our own: a view of memory that somebody else owns, and one that owns what it shows. Includes no torch.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "regplug/dtype.h"
#include "regplug/error.h"
#include "regplug/safetensors.h"

namespace regplug {

// The sizes of a tensor, or its strides, in items; in place, so that a call with tensors allocates nothing.
class Sizes {
 public:
  static constexpr std::size_t kMost = 8;

  Sizes() = default;
  Sizes(std::initializer_list<std::int64_t> sizes) : Sizes(sizes.begin(), sizes.size()) {}
  Sizes(const std::vector<std::int64_t>& sizes) : Sizes(sizes.data(), sizes.size()) {}
  Sizes(const std::int64_t* sizes, std::size_t count) : count_(count) {
    if (count > kMost) throw Error("tensor: expected at most 8 sizes, got " + std::to_string(count) + ".");
    std::copy_n(sizes, count, sizes_.begin());
  }

  std::size_t size() const { return count_; }
  const std::int64_t* data() const { return sizes_.data(); }
  const std::int64_t* begin() const { return sizes_.data(); }
  const std::int64_t* end() const { return sizes_.data() + count_; }
  std::int64_t operator[](std::size_t i) const { return sizes_[i]; }
  std::int64_t& operator[](std::size_t i) { return sizes_[i]; }

  // Throws Error when it is 2^63 or more.
  std::int64_t product() const {
    std::int64_t items = 1;
    bool overflow = false;
    for (const std::int64_t size : *this) overflow = __builtin_mul_overflow(items, size, &items) || overflow;
    if (overflow) throw Error("tensor: expected a product of sizes below 2^63, got " + detail::listed(*this) + ".");
    return items;
  }

 private:
  std::array<std::int64_t, kMost> sizes_{};
  std::size_t count_ = 0;
};

namespace detail {

// Nothing that a view computes of its sizes and strides may overflow, bytes and not items: torch's own rule, which
// leaves out sizes of 0. A view of no items may have any strides that count bytes.
inline void check_sizes(Dtype dtype, const Sizes& sizes) {
  auto bytes = static_cast<std::int64_t>(item_size(dtype));
  for (const std::int64_t size : sizes) {
    if (size < 0) throw Error("tensor: expected sizes >= 0, got " + listed(sizes) + ".");
    if (size == 0 || !__builtin_mul_overflow(bytes, size, &bytes)) continue;
    throw Error("tensor: expected fewer than 2^63 bytes, got " + dtype_name(dtype) + " " + listed(sizes) + ".");
  }
}

inline void check_strides(Dtype dtype, const Sizes& sizes, const Sizes& strides) {
  if (sizes.size() != strides.size()) {
    throw Error("tensor: expected one stride for each size, got " + listed(strides) + " for " + listed(sizes) + ".");
  }
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  std::int64_t before = -item;  // how far the memory reaches to either side of the first item, in bytes
  std::int64_t behind = item;
  bool overflow = false;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    std::int64_t step = 0;
    overflow = __builtin_mul_overflow(strides[i], item, &step) || overflow;
    std::int64_t reach = 0;
    overflow = __builtin_mul_overflow(step, std::max<std::int64_t>(sizes[i] - 1, 0), &reach) || overflow;
    std::int64_t& side = reach < 0 ? before : behind;
    overflow = __builtin_add_overflow(side, reach, &side) || overflow;
  }
  if (overflow) {
    throw Error("tensor: expected strides within 2^63 bytes, got " + listed(strides) + " for " + listed(sizes) + ".");
  }
}

// The strides of a contiguous tensor, whose sizes were checked.
inline Sizes strides_of(const Sizes& sizes) {
  Sizes strides = sizes;
  std::int64_t items = 1;
  for (std::size_t i = sizes.size(); i-- > 0;) {
    strides[i] = items;
    items *= std::max<std::int64_t>(sizes[i], 1);
  }
  return strides;
}

template <typename Number>
constexpr Dtype dtype_of() {
  static_assert(std::is_arithmetic_v<Number>, "a number that C++ has; for the others name the dtype");
  if constexpr (std::is_same_v<Number, bool>) return Dtype::boolean;
  if constexpr (std::is_same_v<Number, double>) return Dtype::float64;
  if constexpr (std::is_same_v<Number, float>) return Dtype::float32;
  if constexpr (std::is_integral_v<Number> && !std::is_same_v<Number, bool>) {
    static_assert(std::is_signed_v<Number> || sizeof(Number) == 1, "no unsigned integers but bytes");
    if constexpr (std::is_unsigned_v<Number>) return Dtype::uint8;
    return sizeof(Number) == 8   ? Dtype::int64
           : sizeof(Number) == 4 ? Dtype::int32
           : sizeof(Number) == 2 ? Dtype::int16
                                 : Dtype::int8;
  }
}

}  // namespace detail

// Shows a tensor in CPU memory that stays its owner's, and must stay as it is while the view is used.
class TensorView {
 public:
  TensorView() = default;  // no tensor

  // Throws Error when the sizes or the strides make no tensor.
  TensorView(Dtype dtype, const void* data, const Sizes& sizes)
      : data_(static_cast<const char*>(data)), sizes_(sizes), dtype_(dtype), defined_(true) {
    detail::check_sizes(dtype, sizes);
    strides_ = detail::strides_of(sizes);
  }
  // Strides in items, not bytes; as many as there are sizes.
  TensorView(Dtype dtype, const void* data, const Sizes& sizes, const Sizes& strides)
      : data_(static_cast<const char*>(data)), sizes_(sizes), strides_(strides), dtype_(dtype), defined_(true) {
    detail::check_sizes(dtype, sizes);
    detail::check_strides(dtype, sizes, strides);
  }

  // The dtype is that of the numbers: TensorView(registers.data(), {batch, 4, 384}).
  template <typename Number, typename = std::enable_if_t<std::is_arithmetic_v<Number>>>
  TensorView(const Number* data, const Sizes& sizes) : TensorView(detail::dtype_of<Number>(), data, sizes) {}

  // A tensor of a safetensors file, in the bytes of that file.
  TensorView(const TensorBytes& entry) : TensorView(dtype_named(entry.dtype), entry.bytes.data(), entry.shape) {
    if (entry.bytes.size() == nbytes()) return;
    throw Error("tensor: expected " + std::to_string(nbytes()) + " bytes, got " + std::to_string(entry.bytes.size()) +
                ".");
  }

  bool defined() const { return defined_ && (data_ != nullptr || items() == 0); }
  Dtype dtype() const { return dtype_; }
  const Sizes& sizes() const { return sizes_; }
  const Sizes& strides() const { return strides_; }
  const char* data() const { return data_; }
  std::int64_t items() const { return sizes_.product(); }
  std::size_t nbytes() const { return static_cast<std::size_t>(items()) * item_size(dtype_); }
  std::string signature() const { return dtype_name(dtype_) + " " + detail::listed(sizes_); }

  bool is_contiguous() const {
    std::int64_t stride = 1;
    for (std::size_t i = sizes_.size(); i-- > 0;) {
      if (sizes_[i] == 0) return true;
      if (sizes_[i] != 1 && strides_[i] != stride) return false;
      stride *= sizes_[i];
    }
    return true;
  }

  // Whether the memory begins where an item may: bytes out of a file need not.
  bool is_aligned() const { return reinterpret_cast<std::uintptr_t>(data_) % item_size(dtype_) == 0; }

  // The part [start, start + length) along one dimension.
  TensorView narrow(std::size_t dimension, std::int64_t start, std::int64_t length) const {
    if (dimension >= sizes_.size() || start < 0 || length < 0 || start > sizes_[dimension] - length) {
      throw Error("tensor: expected a part of " + signature() + ", got " + std::to_string(length) + " from " +
                  std::to_string(start) + " along dimension " + std::to_string(dimension) + ".");
    }
    TensorView part = *this;
    part.sizes_[dimension] = length;
    if (part.items() != 0) part.data_ += start * strides_[dimension] * static_cast<std::int64_t>(item_size(dtype_));
    return part;
  }

  // Writes the items to `place` in C order, whatever the strides and the alignment. Throws Error when there is no
  // tensor.
  void copy_to(char* place) const {
    if (!defined()) throw Error("tensor: expected a tensor, got none.");
    if (items() != 0) copy_from(data_, 0, place);
  }

 private:
  char* copy_from(const char* from, std::size_t dimension, char* place) const {
    std::size_t whole = item_size(dtype_);  // what one memcpy takes: the innermost dimensions that lie together
    std::size_t last = sizes_.size();
    while (last > dimension && strides_[last - 1] * static_cast<std::int64_t>(item_size(dtype_)) ==
                                   static_cast<std::int64_t>(whole)) {
      whole *= static_cast<std::size_t>(sizes_[--last]);
    }
    if (last == dimension) {
      std::memcpy(place, from, whole);
      return place + whole;
    }
    const std::int64_t step = strides_[dimension] * static_cast<std::int64_t>(item_size(dtype_));
    for (std::int64_t i = 0; i < sizes_[dimension]; ++i) place = copy_from(from + i * step, dimension + 1, place);
    return place;
  }

  const char* data_ = nullptr;
  Sizes sizes_;
  Sizes strides_;
  Dtype dtype_ = Dtype::float32;
  bool defined_ = false;
};

// A contiguous tensor and the memory it lies in; copies share it.
class Tensor {
 public:
  Tensor() = default;
  // `owner` keeps the memory at `data` alive.
  Tensor(Dtype dtype, const Sizes& sizes, const void* data, std::shared_ptr<const void> owner)
      : view_(dtype, data, sizes), owner_(std::move(owner)) {}

  // A copy in memory of its own. Throws Error when there is no tensor.
  static Tensor copy_of(const TensorView& from) {
    const std::shared_ptr<char> room(new char[std::max<std::size_t>(from.nbytes(), 1)], std::default_delete<char[]>());
    from.copy_to(room.get());
    return Tensor(from.dtype(), from.sizes(), room.get(), room);
  }

  Dtype dtype() const { return view_.dtype(); }
  const Sizes& sizes() const { return view_.sizes(); }
  std::int64_t items() const { return view_.items(); }
  std::size_t nbytes() const { return view_.nbytes(); }
  const void* data() const { return view_.data(); }
  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }

  // The numbers. Throws Error when the tensor's are of another type.
  template <typename Number>
  const Number* data() const {
    if (detail::dtype_of<Number>() != dtype()) {
      throw Error("tensor: expected " + dtype_name(detail::dtype_of<Number>()) + ", got " + dtype_name(dtype()) + ".");
    }
    return reinterpret_cast<const Number*>(view_.data());
  }

 private:
  TensorView view_;
  std::shared_ptr<const void> owner_;
};

}  // namespace regplug
