// The tensor behind an AtenTensorHandle: sizes, strides, and a share of the memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <new>

#include "regplug/detail/runtime_shim.h"
#include "regplug/dtype.h"

namespace regplug::runtime {

constexpr std::int64_t kMaxRank = 8;

// A tensor has fewer items and bytes: no memory holds as many, and sums of a few such numbers do not overflow.
constexpr std::int64_t kMost = std::int64_t{1} << 60;

// The product of two numbers that are not negative, or kMost if it is larger: no tensor has that size.
inline std::int64_t times(std::int64_t one, std::int64_t other) {
  std::int64_t product = 0;
  return __builtin_mul_overflow(one, other, &product) || product > kMost ? kMost : product;
}

// Memory that tensors share. Its items follow this head.
struct alignas(64) Storage {
  std::atomic<std::int64_t> uses;
};

}  // namespace regplug::runtime

struct AtenTensorOpaque {
  regplug::runtime::Storage* storage;  // null: the memory is the caller's
  char* begin;                         // of the memory
  std::int64_t nbytes;                 // of the memory
  std::int64_t offset;                 // of the first item, in items
  std::int64_t rank;
  std::int64_t sizes[regplug::runtime::kMaxRank];
  std::int64_t strides[regplug::runtime::kMaxRank];  // in items
  regplug::Dtype dtype;

  bool is_empty() const { return std::count(sizes, sizes + rank, 0) != 0; }
  char* data() const { return begin + offset * static_cast<std::int64_t>(regplug::item_size(dtype)); }
};

namespace regplug::runtime {

constexpr const char* kNoMemory = "expected enough memory, got none.";
constexpr const char* kNull = "expected a tensor, got null";

// Keeps the message for shim_error, and returns the shim's code of a failure.
AOTITorchError fail(const char* text);

inline bool has_null(std::initializer_list<const void*> pointers) {
  for (const void* const pointer : pointers) {
    if (pointer == nullptr) return true;
  }
  return false;
}

inline bool is_float(Dtype dtype) {
  return dtype == Dtype::float64 || dtype == Dtype::float32 || dtype == Dtype::float16 || dtype == Dtype::bfloat16;
}

// Deletes a tensor that was not released.
struct DeleteTensor {
  void operator()(AtenTensorHandle tensor) const { aoti_torch_delete_tensor_object(tensor); }
};
using Owned = std::unique_ptr<AtenTensorOpaque, DeleteTensor>;

// A new tensor with memory of its own; null, and the message kept, when there is not enough.
Owned make_tensor(Dtype dtype, std::int64_t rank, const std::int64_t* sizes, const std::int64_t* strides);

// The strides of a new tensor like this one, as torch.empty_like gives them: the same if its items fill its memory, else
// such ones in the same order.
void strides_like(const AtenTensorOpaque& tensor, std::int64_t* strides);

// A copy in C order; null as above.
Owned clone_contiguous(const AtenTensorOpaque& from);

// The code of a call that may need more memory than there is.
template <typename Call>
AOTITorchError guarded(Call call) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return fail(kNoMemory);
  }
}

}  // namespace regplug::runtime
