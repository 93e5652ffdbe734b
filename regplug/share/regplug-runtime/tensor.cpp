// The bookkeeping of the C shim: tensors, their memory, and views of it.
#include "tensor.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>
#include <utility>

#include "functions.h"

namespace regplug::runtime {
namespace {

constexpr std::int32_t kCpu = 0;  // as torch numbers devices
constexpr std::int32_t kCuda = 1;
constexpr std::int32_t kStrided = 0;

// fixed memory: a message must not need any when there is none
thread_local char last_error[400];

constexpr std::int32_t number_of(Dtype dtype) { return static_cast<std::int32_t>(dtype); }

bool refuse(const char* text) {
  fail(text);
  return false;
}

// Sets all but the memory; false, and the message kept, when the arguments are invalid.
bool set_shape(AtenTensorOpaque& tensor, std::int32_t dtype, std::int64_t rank, const std::int64_t* sizes,
               const std::int64_t* strides) {
  if (dtype < 0 || dtype > number_of(Dtype::boolean)) return refuse("expected a dtype of safetensors, got another");
  if (rank < 0 || rank > kMaxRank) return refuse("expected at most 8 sizes, got more");
  if (rank > 0 && has_null({sizes, strides})) return refuse("expected sizes and strides, got null");
  tensor.dtype = static_cast<Dtype>(dtype);
  tensor.rank = rank;
  std::copy_n(sizes, rank, tensor.sizes);
  std::copy_n(strides, rank, tensor.strides);
  // as if no size were 0, so that the strides of empty tensors do not overflow either
  std::int64_t items = 1;
  std::int64_t last = 0;  // the place of the last item
  bool empty = false;
  for (std::int64_t i = 0; i < rank; ++i) {
    if (sizes[i] < 0 || strides[i] < 0) return refuse("expected sizes and strides from 0 on, got negative ones");
    const std::int64_t size = std::max<std::int64_t>(sizes[i], 1);
    items = times(items, size);
    last = std::min(last + times(size - 1, strides[i]), kMost);
    empty = empty || sizes[i] == 0;
  }
  const std::int64_t bytes = times(std::max(items, last + 1), static_cast<std::int64_t>(item_size(tensor.dtype)));
  if (bytes == kMost) return refuse("expected sizes and strides of a tensor in memory, got larger ones");
  tensor.nbytes = empty ? 0 : (last + 1) * static_cast<std::int64_t>(item_size(tensor.dtype));
  return true;
}

Owned keep(const AtenTensorOpaque& tensor) {
  Owned made(static_cast<AtenTensorOpaque*>(std::malloc(sizeof(AtenTensorOpaque))));
  if (made == nullptr) {
    fail(kNoMemory);
    return made;
  }
  *made = tensor;
  if (made->storage != nullptr) made->storage->uses.fetch_add(1, std::memory_order_relaxed);
  return made;
}

AOTITorchError give(Owned tensor, AtenTensorHandle* made) {
  if (tensor == nullptr) return 1;
  *made = tensor.release();
  return 0;
}

// Whether its items fill its memory, each at a place of its own.
bool is_dense(const AtenTensorOpaque& tensor) {
  std::int64_t order[kMaxRank];
  std::iota(order, order + tensor.rank, 0);
  std::sort(order, order + tensor.rank,
            [&](std::int64_t one, std::int64_t other) { return tensor.strides[one] < tensor.strides[other]; });
  std::int64_t items = 1;
  for (std::int64_t i = 0; i < tensor.rank; ++i) {
    const std::int64_t size = tensor.sizes[order[i]];
    if (size != 1 && tensor.strides[order[i]] != items) return false;
    items *= size;
  }
  return true;
}

// Copies the items of one tensor to those of another with the same sizes.
void copy_items(const AtenTensorOpaque& from, const AtenTensorOpaque& to, std::int64_t dimension, const char* source,
                char* target) {
  const auto item = static_cast<std::int64_t>(item_size(from.dtype));
  if (dimension == from.rank) {
    std::memcpy(target, source, static_cast<std::size_t>(item));
    return;
  }
  for (std::int64_t i = 0; i < from.sizes[dimension]; ++i) {
    copy_items(from, to, dimension + 1, source + i * from.strides[dimension] * item,
               target + i * to.strides[dimension] * item);
  }
}

Owned clone_with(const AtenTensorOpaque& from, const std::int64_t* strides) {
  Owned copy = make_tensor(from.dtype, from.rank, from.sizes, strides);
  if (copy != nullptr && !copy->is_empty()) copy_items(from, *copy, 0, from.data(), copy->begin);
  return copy;
}

}  // namespace

AOTITorchError fail(const char* text) {
  std::strncpy(last_error, text, sizeof last_error - 1);
  return 1;
}

const char* shim_error() { return last_error; }

Owned make_tensor(Dtype dtype, std::int64_t rank, const std::int64_t* sizes, const std::int64_t* strides) {
  AtenTensorOpaque tensor{};
  if (!set_shape(tensor, number_of(dtype), rank, sizes, strides)) return nullptr;
  // vectors are read as a whole, also the last one
  const std::size_t size = (static_cast<std::size_t>(tensor.nbytes) + 63) / 64 * 64 + sizeof(Storage);
  void* const memory = std::aligned_alloc(64, size);
  if (memory == nullptr) {
    fail(kNoMemory);
    return nullptr;
  }
  tensor.storage = new (memory) Storage{{0}};
  tensor.begin = static_cast<char*>(memory) + sizeof(Storage);
  Owned made = keep(tensor);
  if (made == nullptr) std::free(memory);
  return made;
}

std::int32_t aoti_torch_device_type_cpu() { return kCpu; }
std::int32_t aoti_torch_device_type_cuda() { return kCuda; }
std::int32_t aoti_torch_layout_strided() { return kStrided; }
std::int32_t aoti_torch_dtype_float64() { return number_of(Dtype::float64); }
std::int32_t aoti_torch_dtype_float32() { return number_of(Dtype::float32); }
std::int32_t aoti_torch_dtype_float16() { return number_of(Dtype::float16); }
std::int32_t aoti_torch_dtype_bfloat16() { return number_of(Dtype::bfloat16); }
std::int32_t aoti_torch_dtype_int64() { return number_of(Dtype::int64); }
std::int32_t aoti_torch_dtype_int32() { return number_of(Dtype::int32); }
std::int32_t aoti_torch_dtype_int16() { return number_of(Dtype::int16); }
std::int32_t aoti_torch_dtype_int8() { return number_of(Dtype::int8); }
std::int32_t aoti_torch_dtype_uint8() { return number_of(Dtype::uint8); }
std::int32_t aoti_torch_dtype_bool() { return number_of(Dtype::boolean); }

// The library turns grad mode off around a run; without autograd it is never on.
bool aoti_torch_grad_mode_is_enabled() { return false; }
void aoti_torch_grad_mode_set_enabled(bool) {}

AOTITorchError aoti_torch_create_tensor_from_blob(void* data, std::int64_t rank, const std::int64_t* sizes,
                                                  const std::int64_t* strides, std::int64_t storage_offset,
                                                  std::int32_t dtype, std::int32_t, std::int32_t,
                                                  AtenTensorHandle* made) {
  if (made == nullptr) return fail(kNull);
  AtenTensorOpaque tensor{};
  if (!set_shape(tensor, dtype, rank, sizes, strides)) return 1;
  if (storage_offset < 0 || storage_offset >= kMost) return fail("expected an offset in memory, got another");
  static char nothing;  // for a tensor without memory: null plus a stride is undefined
  tensor.begin = data == nullptr ? &nothing : static_cast<char*>(data);
  tensor.offset = storage_offset;
  tensor.nbytes += times(storage_offset, static_cast<std::int64_t>(item_size(tensor.dtype)));
  if (tensor.nbytes >= kMost) return fail("expected an offset in memory, got another");
  if (data == nullptr && tensor.nbytes != 0) return fail("expected a tensor's memory, got null");
  return give(keep(tensor), made);
}

AOTITorchError aoti_torch_create_tensor_from_blob_v2(void* data, std::int64_t rank, const std::int64_t* sizes,
                                                     const std::int64_t* strides, std::int64_t storage_offset,
                                                     std::int32_t dtype, std::int32_t device_type,
                                                     std::int32_t device_index, AtenTensorHandle* made, std::int32_t,
                                                     const std::uint8_t*, std::int64_t) {
  return aoti_torch_create_tensor_from_blob(data, rank, sizes, strides, storage_offset, dtype, device_type,
                                            device_index, made);
}

AOTITorchError aoti_torch_empty_strided(std::int64_t rank, const std::int64_t* sizes, const std::int64_t* strides,
                                        std::int32_t dtype, std::int32_t, std::int32_t, AtenTensorHandle* made) {
  if (made == nullptr) return fail(kNull);
  if (dtype < 0 || dtype > number_of(Dtype::boolean)) return fail("expected a dtype of safetensors, got another");
  return give(make_tensor(static_cast<Dtype>(dtype), rank, sizes, strides), made);
}

AOTITorchError aoti_torch__reinterpret_tensor(AtenTensorHandle from, std::int64_t rank, const std::int64_t* sizes,
                                              const std::int64_t* strides, std::int64_t more_offset,
                                              AtenTensorHandle* made) {
  if (has_null({from, made})) return fail(kNull);
  AtenTensorOpaque tensor = *from;
  if (!set_shape(tensor, number_of(from->dtype), rank, sizes, strides)) return 1;
  if (more_offset < -from->offset || more_offset >= kMost ||
      times(from->offset + more_offset, static_cast<std::int64_t>(item_size(from->dtype))) + tensor.nbytes >
          from->nbytes) {
    return fail("expected a view inside the tensor, got one beyond it");
  }
  tensor.offset += more_offset;
  tensor.nbytes = from->nbytes;
  return give(keep(tensor), made);
}

void strides_like(const AtenTensorOpaque& tensor, std::int64_t* strides) {
  if (is_dense(tensor)) {
    std::copy_n(tensor.strides, tensor.rank, strides);
    return;
  }
  // Dimensions from the innermost to the outermost. A stride of 0 compares with none: such a dimension stays where it is.
  std::int64_t order[kMaxRank];
  for (std::int64_t i = 0; i < tensor.rank; ++i) order[i] = tensor.rank - 1 - i;
  for (std::int64_t i = 1; i < tensor.rank; ++i) {
    std::int64_t moved = i;
    for (std::int64_t j = i; j-- > 0;) {
      const std::int64_t inner = tensor.strides[order[j]];
      const std::int64_t outer = tensor.strides[order[moved]];
      if (inner == 0 || outer == 0) continue;
      if (inner < outer) break;
      if (inner > outer || tensor.sizes[order[j]] > tensor.sizes[order[moved]]) {
        std::swap(order[j], order[moved]);
        moved = j;
      }
    }
  }
  std::int64_t next = 1;
  for (std::int64_t i = 0; i < tensor.rank; ++i) {
    strides[order[i]] = next;
    next = times(next, std::max<std::int64_t>(tensor.sizes[order[i]], 1));
  }
}

Owned clone_contiguous(const AtenTensorOpaque& from) {
  std::int64_t strides[kMaxRank];
  std::int64_t items = 1;
  for (std::int64_t i = from.rank; i-- > 0;) {
    strides[i] = items;
    items *= std::max<std::int64_t>(from.sizes[i], 1);
  }
  return clone_with(from, strides);
}

AOTITorchError aoti_torch_clone(AtenTensorHandle from, AtenTensorHandle* made) {
  if (has_null({from, made})) return fail(kNull);
  std::int64_t strides[kMaxRank];
  strides_like(*from, strides);
  if (!is_dense(*from)) return give(clone_with(*from, strides), made);
  Owned copy = make_tensor(from->dtype, from->rank, from->sizes, strides);
  if (copy != nullptr) std::memcpy(copy->begin, from->data(), static_cast<std::size_t>(copy->nbytes));
  return give(std::move(copy), made);
}

AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle from, AtenTensorHandle* made) {
  return has_null({from, made}) ? fail(kNull) : give(keep(*from), made);
}

AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
  if (tensor == nullptr) return 0;
  Storage* const storage = tensor->storage;
  if (storage != nullptr && storage->uses.fetch_sub(1, std::memory_order_acq_rel) == 1) std::free(storage);
  std::free(tensor);
  return 0;
}

AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, std::int64_t* rank) {
  if (has_null({tensor, rank})) return fail(kNull);
  *rank = tensor->rank;
  return 0;
}

AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, std::int64_t** borrowed) {
  if (has_null({tensor, borrowed})) return fail(kNull);
  *borrowed = tensor->sizes;
  return 0;
}

AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, std::int64_t** borrowed) {
  if (has_null({tensor, borrowed})) return fail(kNull);
  *borrowed = tensor->strides;
  return 0;
}

AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, std::int32_t* dtype) {
  if (has_null({tensor, dtype})) return fail(kNull);
  *dtype = number_of(tensor->dtype);
  return 0;
}

AOTITorchError aoti_torch_get_device_type(AtenTensorHandle tensor, std::int32_t* type) {
  if (has_null({tensor, type})) return fail(kNull);
  *type = kCpu;
  return 0;
}

AOTITorchError aoti_torch_get_layout(AtenTensorHandle tensor, std::int32_t* layout) {
  if (has_null({tensor, layout})) return fail(kNull);
  *layout = kStrided;
  return 0;
}

AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle tensor, void** borrowed) {
  if (has_null({tensor, borrowed})) return fail(kNull);
  *borrowed = tensor->data();
  return 0;
}

AOTITorchError aoti_torch_get_storage_offset(AtenTensorHandle tensor, std::int64_t* items) {
  if (has_null({tensor, items})) return fail(kNull);
  *items = tensor->offset;
  return 0;
}

AOTITorchError aoti_torch_get_storage_size(AtenTensorHandle tensor, std::int64_t* bytes) {
  if (has_null({tensor, bytes})) return fail(kNull);
  *bytes = tensor->nbytes;
  return 0;
}

}  // namespace regplug::runtime
