// The part of libtorch's C shim that a model library is loaded and run through, and the library's own interface.
//
// Declared here, and not taken from torch/csrc/inductor/aoti_torch/c/shim.h: that header brings C++ headers that ask
// for another C++ standard in every few versions of torch, while the functions keep their binary interface ("you MUST
// MAINTAIN ABI compatibility", it says). So no torch header is needed to compile, and one binary runs with any torch
// that has these symbols (2.10 and later; run with 2.13 and 2.15). Including both headers is fine, and the tests do,
// so that the compiler compares them.
#pragma once

#include <cstddef>
#include <cstdint>

struct AtenTensorOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
using AOTITorchError = std::int32_t;  // 0: success

extern "C" {
std::int32_t aoti_torch_device_type_cpu();
std::int32_t aoti_torch_layout_strided();
std::int32_t aoti_torch_dtype_float64();
std::int32_t aoti_torch_dtype_float32();
std::int32_t aoti_torch_dtype_float16();
std::int32_t aoti_torch_dtype_bfloat16();
std::int32_t aoti_torch_dtype_int64();
std::int32_t aoti_torch_dtype_int32();
std::int32_t aoti_torch_dtype_int16();
std::int32_t aoti_torch_dtype_int8();
std::int32_t aoti_torch_dtype_uint8();
std::int32_t aoti_torch_dtype_bool();
AOTITorchError aoti_torch_create_tensor_from_blob_v2(void* data, std::int64_t rank, const std::int64_t* sizes,
                                                     const std::int64_t* strides, std::int64_t storage_offset,
                                                     std::int32_t dtype, std::int32_t device_type,
                                                     std::int32_t device_index, AtenTensorHandle* made,
                                                     std::int32_t layout, const std::uint8_t* opaque_metadata,
                                                     std::int64_t opaque_metadata_size);
AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle from, AtenTensorHandle* made);
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor);
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, std::int64_t* rank);
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, std::int64_t** borrowed);
AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, std::int64_t** borrowed);
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, std::int32_t* dtype);
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle tensor, std::int32_t* type);
AOTITorchError aoti_torch_get_layout(AtenTensorHandle tensor, std::int32_t* layout);
AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle tensor, void** borrowed);
AOTITorchError aoti_torch_get_storage_offset(AtenTensorHandle tensor, std::int64_t* items);
AOTITorchError aoti_torch_get_storage_size(AtenTensorHandle tensor, std::int64_t* bytes);
// What the last call that failed in this thread threw. Weak: a torch without it loses the text and nothing else.
__attribute__((weak)) const char* torch_exception_get_what_without_backtrace();
}

namespace regplug::detail {

// The functions that a model library exports, as torch/csrc/inductor/aoti_runtime/interface.h declares them.
struct AotiInterface {
  using Container = struct AOTInductorModelContainerOpaque*;
  struct ConstantEntry {
    const char* name;
    AtenTensorHandle handle;
  };
  std::int32_t (*create)(Container* made, std::size_t models, const char* device, const char* cubin_dir);
  std::int32_t (*destroy)(Container);
  std::int32_t (*count_inputs)(Container, std::size_t* count);
  std::int32_t (*count_outputs)(Container, std::size_t* count);
  std::int32_t (*count_constants)(Container, std::size_t* count);
  // Takes the inputs over; the outputs become the caller's.
  std::int32_t (*run)(Container, AtenTensorHandle* inputs, std::size_t num_inputs, AtenTensorHandle* outputs,
                      std::size_t num_outputs, void* stream, void* proxy_executor);
  // Null where an older torch made the library.
  std::int32_t (*constants)(Container, const ConstantEntry** entries, std::size_t* count, bool inactive);
  std::int32_t (*last_error)(const char** text);
};

}  // namespace regplug::detail
