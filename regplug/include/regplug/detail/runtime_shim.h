// What regplug::runtime defines in place of libtorch: the part of torch's C shim that loads and runs a model library,
// and the table of all functions that the library may call.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "regplug/detail/bind_symbols.h"

#if !defined(__GLIBC__) || !__GLIBC_PREREQ(2, 28)
#error "regplug::runtime needs glibc 2.28 or newer: see bind_symbols.h"
#endif

struct AtenTensorOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
using AOTITorchError = std::int32_t;  // 0: success

namespace regplug::runtime {

// The address of a function that a program may call; null when the runtime lacks it.
const void* find_function(std::string_view name);

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
// The reason of the last call that failed in this thread.
const char* shim_error();

}  // namespace regplug::runtime

namespace regplug::detail {

using namespace regplug::runtime;

// What the dynamic linker gets. Throws Fault when the library calls a function that the runtime lacks.
inline std::string linked(std::string_view library) { return bind_symbols(library, runtime::find_function); }

}  // namespace regplug::detail
