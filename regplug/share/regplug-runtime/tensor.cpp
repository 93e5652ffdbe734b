// The bookkeeping of the C shim: tensors, their memory, and views of it.
#include "tensor.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "functions.h"

namespace regplug::runtime {
namespace {

constexpr std::int32_t kCpu = 0;  // as torch numbers devices
constexpr std::int32_t kCuda = 1;
constexpr std::int32_t kStrided = 0;

// fixed memory: a message must not need any when there is none
thread_local char last_error[400];

constexpr std::int32_t number_of(Dtype dtype) { return static_cast<std::int32_t>(dtype); }

// The items that memory must hold for these sizes and strides, beginning with the first item; -1 when they are invalid.
std::int64_t extent(std::int64_t rank, const std::int64_t* sizes, const std::int64_t* strides) {
  std::int64_t last = 0;
  for (std::int64_t i = 0; i < rank; ++i) {
    if (sizes[i] < 0 || strides[i] < 0) return -1;
    std::int64_t reach = 0;
    if (sizes[i] == 0) return 0;
    if (__builtin_mul_overflow(sizes[i] - 1, strides[i], &reach) || __builtin_add_overflow(last, reach, &last)) {
      return -1;
    }
  }
  return last + 1;
}

bool refuse(const char* text) {
  fail(text);
  return false;
}

// Sets all but the memory; false, and the message kept, when the arguments are invalid.
bool set_shape(AtenTensorOpaque& tensor, std::int32_t dtype, std::int64_t rank, const std::int64_t* sizes,
               const std::int64_t* strides) {
  if (dtype < 0 || dtype > number_of(Dtype::boolean)) return refuse("expected a dtype of safetensors, got another");
  if (rank < 0 || rank > kMaxRank) return refuse("expected at most 8 sizes, got more");
  tensor.dtype = static_cast<Dtype>(dtype);
  tensor.rank = rank;
  std::copy_n(sizes, rank, tensor.sizes);
  std::copy_n(strides, rank, tensor.strides);
  std::int64_t bytes = extent(rank, sizes, strides);
  if (bytes < 0 || __builtin_mul_overflow(bytes, static_cast<std::int64_t>(item_size(tensor.dtype)), &bytes)) {
    return refuse("expected sizes and strides of a tensor in memory, got others");
  }
  tensor.nbytes = bytes;
  return true;
}

AtenTensorHandle keep(const AtenTensorOpaque& tensor) {
  auto* const made = static_cast<AtenTensorOpaque*>(std::malloc(sizeof(AtenTensorOpaque)));
  if (made == nullptr) {
    fail("expected enough memory, got none");
    return nullptr;
  }
  *made = tensor;
  if (made->storage != nullptr) made->storage->uses.fetch_add(1, std::memory_order_relaxed);
  return made;
}

AOTITorchError give(AtenTensorHandle tensor, AtenTensorHandle* made) {
  if (tensor == nullptr) return 1;
  *made = tensor;
  return 0;
}

bool is_dense(const AtenTensorOpaque& tensor) {
  std::int64_t items = 1;
  for (std::int64_t i = 0; i < tensor.rank; ++i) items *= tensor.sizes[i];
  return extent(tensor.rank, tensor.sizes, tensor.strides) == items;
}

void copy_items(const AtenTensorOpaque& from, std::int64_t dimension, const char* source, char*& target) {
  const auto item = static_cast<std::int64_t>(item_size(from.dtype));
  if (dimension == from.rank) {
    std::memcpy(target, source, static_cast<std::size_t>(item));
    target += item;
    return;
  }
  for (std::int64_t i = 0; i < from.sizes[dimension]; ++i) {
    copy_items(from, dimension + 1, source + i * from.strides[dimension] * item, target);
  }
}

}  // namespace

AOTITorchError fail(const char* text) {
  std::strncpy(last_error, text, sizeof last_error - 1);
  return 1;
}

const char* shim_error() { return last_error; }

AtenTensorHandle make_tensor(Dtype dtype, std::int64_t rank, const std::int64_t* sizes, const std::int64_t* strides) {
  AtenTensorOpaque tensor{};
  if (!set_shape(tensor, number_of(dtype), rank, sizes, strides)) return nullptr;
  // vectors are read as a whole, also the last one
  const std::size_t size = (static_cast<std::size_t>(tensor.nbytes) + 63) / 64 * 64 + sizeof(Storage);
  void* const memory = size > static_cast<std::size_t>(tensor.nbytes) ? std::aligned_alloc(64, size) : nullptr;
  if (memory == nullptr) {
    fail("expected enough memory, got none");
    return nullptr;
  }
  tensor.storage = new (memory) Storage{{0}};
  tensor.begin = static_cast<char*>(memory) + sizeof(Storage);
  const AtenTensorHandle made = keep(tensor);
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
  AtenTensorOpaque tensor{};
  if (!set_shape(tensor, dtype, rank, sizes, strides)) return 1;
  tensor.begin = static_cast<char*>(data);
  tensor.offset = storage_offset;
  tensor.nbytes += storage_offset * static_cast<std::int64_t>(item_size(tensor.dtype));
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
  if (dtype < 0 || dtype > number_of(Dtype::boolean)) return fail("expected a dtype of safetensors, got another");
  return give(make_tensor(static_cast<Dtype>(dtype), rank, sizes, strides), made);
}

AOTITorchError aoti_torch__reinterpret_tensor(AtenTensorHandle from, std::int64_t rank, const std::int64_t* sizes,
                                              const std::int64_t* strides, std::int64_t more_offset,
                                              AtenTensorHandle* made) {
  AtenTensorOpaque tensor = *from;
  if (!set_shape(tensor, number_of(from->dtype), rank, sizes, strides)) return 1;
  tensor.offset += more_offset;
  const std::int64_t end = tensor.offset * static_cast<std::int64_t>(item_size(tensor.dtype)) + tensor.nbytes;
  if (tensor.offset < 0 || end > from->nbytes) return fail("expected a view inside the tensor, got one beyond it");
  tensor.nbytes = from->nbytes;
  return give(keep(tensor), made);
}

AOTITorchError clone_contiguous(AtenTensorHandle from, AtenTensorHandle* made) {
  std::int64_t strides[kMaxRank];
  std::int64_t items = 1;
  for (std::int64_t i = from->rank; i-- > 0;) {
    strides[i] = items;
    items *= std::max<std::int64_t>(from->sizes[i], 1);
  }
  const AtenTensorHandle copy = make_tensor(from->dtype, from->rank, from->sizes, strides);
  if (copy == nullptr) return 1;
  char* target = copy->begin;
  copy_items(*from, 0, from->data(), target);
  return give(copy, made);
}

AOTITorchError aoti_torch_clone(AtenTensorHandle from, AtenTensorHandle* made) {
  if (!is_dense(*from)) return clone_contiguous(from, made);
  const AtenTensorHandle copy = make_tensor(from->dtype, from->rank, from->sizes, from->strides);
  if (copy != nullptr) std::memcpy(copy->begin, from->data(), static_cast<std::size_t>(copy->nbytes));
  return give(copy, made);
}

AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle from, AtenTensorHandle* made) {
  return give(keep(*from), made);
}

AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
  if (tensor == nullptr) return 0;
  Storage* const storage = tensor->storage;
  if (storage != nullptr && storage->uses.fetch_sub(1, std::memory_order_acq_rel) == 1) std::free(storage);
  std::free(tensor);
  return 0;
}

AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, std::int64_t* rank) {
  *rank = tensor->rank;
  return 0;
}

AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, std::int64_t** borrowed) {
  *borrowed = tensor->sizes;
  return 0;
}

AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, std::int64_t** borrowed) {
  *borrowed = tensor->strides;
  return 0;
}

AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, std::int32_t* dtype) {
  *dtype = number_of(tensor->dtype);
  return 0;
}

AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, std::int32_t* type) {
  *type = kCpu;
  return 0;
}

AOTITorchError aoti_torch_get_layout(AtenTensorHandle, std::int32_t* layout) {
  *layout = kStrided;
  return 0;
}

AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle tensor, void** borrowed) {
  *borrowed = tensor->data();
  return 0;
}

AOTITorchError aoti_torch_get_storage_offset(AtenTensorHandle tensor, std::int64_t* items) {
  *items = tensor->offset;
  return 0;
}

AOTITorchError aoti_torch_get_storage_size(AtenTensorHandle tensor, std::int64_t* bytes) {
  *bytes = tensor->nbytes;
  return 0;
}

}  // namespace regplug::runtime
