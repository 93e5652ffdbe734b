// Our own tensors: TensorView does not own its memory, Tensor does. Includes no torch.
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

// The sizes or strides of a tensor, in items. Stored in place, so that a call with tensors allocates nothing.
class Sizes {
 public:
  static constexpr std::size_t kMaxRank = 8;

  Sizes() = default;
  Sizes(std::initializer_list<std::int64_t> sizes) : Sizes(sizes.begin(), sizes.size()) {}
  Sizes(const std::vector<std::int64_t>& sizes) : Sizes(sizes.data(), sizes.size()) {}
  Sizes(const std::int64_t* sizes, std::size_t count) : count_(count) {
    if (count > kMaxRank) throw Error("tensor: expected at most 8 sizes, got " + std::to_string(count) + ".");
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
    if (!overflow) return items;
    throw Error("tensor: expected a product of sizes below 2^63, got " + detail::format_list(*this) + ".");
  }

 private:
  std::array<std::int64_t, kMaxRank> sizes_{};
  std::size_t count_ = 0;
};

namespace detail {

// Nothing that a view computes from its sizes and strides may overflow, counted in bytes. This is torch's own rule,
// which skips sizes of 0.
inline void check_sizes(Dtype dtype, const Sizes& sizes) {
  auto bytes = static_cast<std::int64_t>(item_size(dtype));
  for (const std::int64_t size : sizes) {
    if (size < 0) throw Error("tensor: expected sizes >= 0, got " + format_list(sizes) + ".");
    if (size == 0 || !__builtin_mul_overflow(bytes, size, &bytes)) continue;
    throw Error("tensor: expected fewer than 2^63 bytes, got " + dtype_name(dtype) + " " + format_list(sizes) + ".");
  }
}

inline void check_strides(Dtype dtype, const Sizes& sizes, const Sizes& strides) {
  if (sizes.size() != strides.size()) {
    throw Error("tensor: expected one stride for each size, got " + format_list(strides) + " for " +
                format_list(sizes) + ".");
  }
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  std::int64_t below = -item;  // how far the memory extends on each side of the first item, in bytes
  std::int64_t above = item;
  bool overflow = false;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    std::int64_t step = 0;
    overflow = __builtin_mul_overflow(strides[i], item, &step) || overflow;
    std::int64_t reach = 0;
    overflow = __builtin_mul_overflow(step, std::max<std::int64_t>(sizes[i] - 1, 0), &reach) || overflow;
    std::int64_t& side = reach < 0 ? below : above;
    overflow = __builtin_add_overflow(side, reach, &side) || overflow;
  }
  if (!overflow) return;
  throw Error("tensor: expected strides within 2^63 bytes, got " + format_list(strides) + " for " + format_list(sizes) +
              ".");
}

// The strides of a contiguous tensor. The sizes were checked.
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
  static_assert(std::is_arithmetic_v<Number>, "expected a C++ number type; for other dtypes, pass the Dtype");
  if constexpr (std::is_same_v<Number, bool>) return Dtype::boolean;
  if constexpr (std::is_same_v<Number, double>) return Dtype::float64;
  if constexpr (std::is_same_v<Number, float>) return Dtype::float32;
  if constexpr (std::is_integral_v<Number> && !std::is_same_v<Number, bool>) {
    static_assert(std::is_signed_v<Number> || sizeof(Number) == 1, "torch has no unsigned integers except uint8");
    if constexpr (std::is_unsigned_v<Number>) return Dtype::uint8;
    return sizeof(Number) == 8   ? Dtype::int64
           : sizeof(Number) == 4 ? Dtype::int32
           : sizeof(Number) == 2 ? Dtype::int16
                                 : Dtype::int8;
  }
}

}  // namespace detail

// A tensor in CPU memory that somebody else owns; the memory must stay valid while the view is used.
class TensorView {
 public:
  TensorView() = default;  // no tensor

  // Throws Error when the sizes are not valid.
  TensorView(Dtype dtype, const void* data, const Sizes& sizes)
      : data_(static_cast<const char*>(data)), sizes_(sizes), dtype_(dtype), defined_(true) {
    detail::check_sizes(dtype, sizes);
    strides_ = detail::strides_of(sizes);
  }
  // Strides are in items, not bytes, one for each size. Throws Error when sizes or strides are not valid.
  TensorView(Dtype dtype, const void* data, const Sizes& sizes, const Sizes& strides)
      : data_(static_cast<const char*>(data)), sizes_(sizes), strides_(strides), dtype_(dtype), defined_(true) {
    detail::check_sizes(dtype, sizes);
    detail::check_strides(dtype, sizes, strides);
  }

  // Takes the dtype from the pointer: TensorView(registers.data(), {batch, 4, 384}).
  template <typename Number, typename = std::enable_if_t<std::is_arithmetic_v<Number>>>
  TensorView(const Number* data, const Sizes& sizes) : TensorView(detail::dtype_of<Number>(), data, sizes) {}

  // A tensor of a safetensors file, without a copy.
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
  std::string signature() const { return dtype_name(dtype_) + " " + detail::format_list(sizes_); }

  bool is_contiguous() const {
    std::int64_t stride = 1;
    for (std::size_t i = sizes_.size(); i-- > 0;) {
      if (sizes_[i] == 0) return true;
      if (sizes_[i] != 1 && strides_[i] != stride) return false;
      stride *= sizes_[i];
    }
    return true;
  }

  // Whether the memory is aligned for its items; bytes from a file may not be.
  bool is_aligned() const { return reinterpret_cast<std::uintptr_t>(data_) % item_size(dtype_) == 0; }

  // The part [start, start + length) along one dimension.
  TensorView narrow(std::size_t dimension, std::int64_t start, std::int64_t length) const {
    if (dimension >= sizes_.size() || start < 0 || length < 0 || start > sizes_[dimension] - length) {
      throw Error("tensor: expected a slice of " + signature() + ", got start " + std::to_string(start) +
                  " and length " + std::to_string(length) + " in dimension " + std::to_string(dimension) + ".");
    }
    TensorView part = *this;
    part.sizes_[dimension] = length;
    if (part.items() != 0) part.data_ += start * strides_[dimension] * static_cast<std::int64_t>(item_size(dtype_));
    return part;
  }

  // Writes the items to `place` in C order, for any strides and alignment. Throws Error when there is no tensor.
  void copy_to(char* place) const {
    if (!defined()) throw Error("tensor: expected a tensor, got none.");
    if (items() != 0) copy_from(data_, 0, place);
  }

 private:
  char* copy_from(const char* from, std::size_t dimension, char* place) const {
    std::size_t whole = item_size(dtype_);  // size of one memcpy: the innermost contiguous dimensions
    std::size_t last = sizes_.size();
    while (last > dimension &&
           strides_[last - 1] * static_cast<std::int64_t>(item_size(dtype_)) == static_cast<std::int64_t>(whole)) {
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

// A contiguous tensor that owns its memory; copies share it.
class Tensor {
 public:
  Tensor() = default;
  // `owner` keeps the memory at `data` alive.
  Tensor(Dtype dtype, const Sizes& sizes, const void* data, std::shared_ptr<const void> owner)
      : view_(dtype, data, sizes), owner_(std::move(owner)) {}

  // A contiguous copy. Throws Error when there is no tensor.
  static Tensor copy_of(const TensorView& from) {
    const std::shared_ptr<char[]> memory(new char[std::max<std::size_t>(from.nbytes(), 1)]);
    from.copy_to(memory.get());
    return Tensor(from.dtype(), from.sizes(), memory.get(), memory);
  }

  Dtype dtype() const { return view_.dtype(); }
  const Sizes& sizes() const { return view_.sizes(); }
  std::int64_t items() const { return view_.items(); }
  std::size_t nbytes() const { return view_.nbytes(); }
  const void* data() const { return view_.data(); }
  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }

  // Throws Error when the tensor has another dtype.
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
