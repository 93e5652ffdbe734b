// The part of libtorch's C shim that loads and runs a model library.
//
// Declared here instead of including torch/csrc/inductor/aoti_torch/c/shim.h: every few versions of torch, that header
// requires a newer C++ standard, while the functions keep their binary interface ("you MUST MAINTAIN ABI
// compatibility", it says). So compiling needs no torch header, and one binary runs with any torch that has these
// symbols (2.10 and later; tested with 2.13 and 2.15). A test includes both headers, so that the compiler compares
// them.
#pragma once

#include <cstdint>
#include <string_view>

#include "regplug/detail/bind_symbols.h"

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
// The error of the last call that failed in this thread. Weak: without it only the text is lost.
__attribute__((weak)) const char* torch_exception_get_what_without_backtrace();
}

namespace regplug::detail {

// The reason of the last call that failed in this thread; null when torch does not say.
inline const char* shim_error() {
  return torch_exception_get_what_without_backtrace == nullptr ? nullptr : torch_exception_get_what_without_backtrace();
}

// What the dynamic linker gets: it finds libtorch's functions by itself. Throws Fault when it is no library for this
// machine.
inline std::string_view linked(std::string_view library) {
  check_library(library);
  return library;
}

}  // namespace regplug::detail
