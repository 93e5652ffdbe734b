// Torch's tensors as the C shim has them: opaque handles, made from our views and inspected as views.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "regplug/detail/aoti_shim.h"
#include "regplug/detail/translate_errors.h"
#include "regplug/dtype.h"
#include "regplug/error.h"
#include "regplug/tensor.h"

namespace regplug::detail {
REGPLUG_SHIM_BEGIN

// Throws the reason of the call into torch that just failed in this thread.
[[noreturn]] inline void throw_shim_error() {
  const char* const text = shim_error();
  const std::string line = text == nullptr ? "" : first_line(text);
  throw Fault(line.empty() ? "the library reported an error, see stderr" : line);
}

inline void check_shim(AOTITorchError code) {
  if (code != 0) throw_shim_error();
}

struct DeleteAten {
  void operator()(AtenTensorHandle handle) const { aoti_torch_delete_tensor_object(handle); }
};
using AtenTensor = std::unique_ptr<AtenTensorOpaque, DeleteAten>;

// The shim's number of a dtype. It is not part of the binary interface, so torch is asked.
inline std::int32_t aten_dtype(Dtype dtype) {
  static const std::array<std::int32_t, 10> numbers{
      aoti_torch_dtype_float64(), aoti_torch_dtype_float32(), aoti_torch_dtype_float16(), aoti_torch_dtype_bfloat16(),
      aoti_torch_dtype_int64(),   aoti_torch_dtype_int32(),   aoti_torch_dtype_int16(),   aoti_torch_dtype_int8(),
      aoti_torch_dtype_uint8(),   aoti_torch_dtype_bool()};  // in the order of the enumeration
  return numbers[static_cast<std::size_t>(dtype)];
}

// A torch tensor in the memory of a contiguous view; neither copies nor owns it.
inline AtenTensor to_aten(const TensorView& view) {
  static const std::int32_t cpu = aoti_torch_device_type_cpu();
  static const std::int32_t strided = aoti_torch_layout_strided();
  const Sizes strides = strides_of(view.sizes());  // the view's own may be arbitrary where a size is 1
  AtenTensorHandle made = nullptr;
  // torch expects writable memory; a program writes to no input
  check_shim(aoti_torch_create_tensor_from_blob_v2(
      const_cast<char*>(view.data()), static_cast<std::int64_t>(view.sizes().size()), view.sizes().data(),
      strides.data(), 0, aten_dtype(view.dtype()), cpu, 0, &made, strided, nullptr, 0));
  return AtenTensor(made);
}

inline AtenTensor new_handle(const AtenTensor& tensor) {
  AtenTensorHandle made = nullptr;
  check_shim(aoti_torch_new_tensor_handle(tensor.get(), &made));
  return AtenTensor(made);
}

// The handles of one call, stored in place up to kInPlace. Deletes those that were not released.
template <std::size_t kInPlace>
class Handles {
 public:
  explicit Handles(std::size_t count) : count_(count) {
    if (count > kInPlace) {
      many_.resize(count);
      first_ = many_.data();
    } else {
      std::fill_n(first_, count, nullptr);
    }
  }
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;
  ~Handles() {
    for (std::size_t i = 0; i < count_; ++i) AtenTensor(first_[i]).reset();
  }

  AtenTensorHandle* data() { return first_; }
  AtenTensorHandle& operator[](std::size_t i) { return first_[i]; }
  AtenTensorHandle operator[](std::size_t i) const { return first_[i]; }

  // For a call that takes ownership of all of them.
  AtenTensorHandle* release() {
    count_ = 0;
    return first_;
  }

  // One of them, as the owner of its memory.
  std::shared_ptr<const void> share(std::size_t i) {
    return std::shared_ptr<AtenTensorOpaque>(std::exchange(first_[i], nullptr), DeleteAten());
  }

 private:
  AtenTensorHandle few_[kInPlace];
  std::vector<AtenTensorHandle> many_;
  AtenTensorHandle* first_ = few_;
  std::size_t count_;
};

// A block of memory: [begin, end).
struct Block {
  const char* begin;
  const char* end;
  bool overlaps(const Block& other) const { return begin < other.end && other.begin < end; }
};

struct AtenTensorInfo {
  bool supported = false;  // if not, it has another device, layout or dtype, or too many sizes, and nothing else is set
  TensorView view;
  Block storage{};
};

inline AtenTensorInfo inspect(AtenTensorHandle tensor) {
  static const std::int32_t cpu = aoti_torch_device_type_cpu();
  static const std::int32_t strided = aoti_torch_layout_strided();
  AtenTensorInfo info;
  std::int32_t number = 0;
  std::int32_t device = 0;
  std::int32_t layout = 0;
  std::int64_t rank = 0;
  check_shim(aoti_torch_get_layout(tensor, &layout));
  check_shim(aoti_torch_get_device_type(tensor, &device));
  check_shim(aoti_torch_get_dtype(tensor, &number));
  check_shim(aoti_torch_get_dim(tensor, &rank));
  if (layout != strided || device != cpu || rank > static_cast<std::int64_t>(Sizes::kMaxRank)) return info;
  for (const DtypeInfo& known : kDtypes) {
    if (aten_dtype(known.dtype) != number) continue;
    void* data = nullptr;
    std::int64_t* sizes = nullptr;
    std::int64_t* strides = nullptr;
    std::int64_t offset = 0;
    std::int64_t size = 0;
    check_shim(aoti_torch_get_data_ptr(tensor, &data));
    check_shim(aoti_torch_get_sizes(tensor, &sizes));
    check_shim(aoti_torch_get_strides(tensor, &strides));
    check_shim(aoti_torch_get_storage_offset(tensor, &offset));
    check_shim(aoti_torch_get_storage_size(tensor, &size));
    const auto length = static_cast<std::size_t>(rank);
    info.view = TensorView(known.dtype, data, Sizes(sizes, length), Sizes(strides, length));
    if (data != nullptr) {  // null when there are no items
      const char* begin = static_cast<const char*>(data) - offset * static_cast<std::int64_t>(known.size);
      info.storage = {begin, begin + size};
    }
    info.supported = true;
    return info;
  }
  return info;
}

REGPLUG_SHIM_END
}  // namespace regplug::detail
