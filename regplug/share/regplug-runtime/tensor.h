// The tensor behind an AtenTensorHandle: sizes, strides, and a share of the memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "regplug/detail/runtime_shim.h"
#include "regplug/dtype.h"

namespace regplug::runtime {

constexpr std::int64_t kMaxRank = 8;

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

  char* data() const { return begin + offset * static_cast<std::int64_t>(regplug::item_size(dtype)); }
};

namespace regplug::runtime {

// Keeps the message for shim_error, and returns the shim's code of a failure.
AOTITorchError fail(const char* text);

// A new tensor with memory of its own; null, and the message kept, when there is not enough.
AtenTensorHandle make_tensor(Dtype dtype, std::int64_t rank, const std::int64_t* sizes, const std::int64_t* strides);

// A copy in C order.
AOTITorchError clone_contiguous(AtenTensorHandle from, AtenTensorHandle* made);

}  // namespace regplug::runtime
