// The functions that only programs call: those of torch's C shim, and SLEEF's vector functions.
#pragma once

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include <cstdint>

#include "regplug/detail/runtime_shim.h"

namespace regplug::runtime {

std::int32_t aoti_torch_device_type_cuda();
bool aoti_torch_grad_mode_is_enabled();
void aoti_torch_grad_mode_set_enabled(bool enabled);
AOTITorchError aoti_torch_create_tensor_from_blob(void* data, std::int64_t rank, const std::int64_t* sizes,
                                                  const std::int64_t* strides, std::int64_t storage_offset,
                                                  std::int32_t dtype, std::int32_t device_type,
                                                  std::int32_t device_index, AtenTensorHandle* made);
AOTITorchError aoti_torch_empty_strided(std::int64_t rank, const std::int64_t* sizes, const std::int64_t* strides,
                                        std::int32_t dtype, std::int32_t device_type, std::int32_t device_index,
                                        AtenTensorHandle* made);
AOTITorchError aoti_torch__reinterpret_tensor(AtenTensorHandle from, std::int64_t rank, const std::int64_t* sizes,
                                              const std::int64_t* strides, std::int64_t more_offset,
                                              AtenTensorHandle* made);
AOTITorchError aoti_torch_clone(AtenTensorHandle from, AtenTensorHandle* made);

// out = one @ other, and out = beta * bias + alpha * (one @ other)
AOTITorchError aoti_torch_cpu_mm_out(AtenTensorHandle out, AtenTensorHandle one, AtenTensorHandle other);
AOTITorchError aoti_torch_cpu_addmm_out(AtenTensorHandle out, AtenTensorHandle bias, AtenTensorHandle one,
                                        AtenTensorHandle other, double beta, double alpha);
AOTITorchError aoti_torch_cpu_bmm_out(AtenTensorHandle out, AtenTensorHandle one, AtenTensorHandle other);
AOTITorchError aoti_torch_cpu_baddbmm_out(AtenTensorHandle out, AtenTensorHandle bias, AtenTensorHandle one,
                                          AtenTensorHandle other, double beta, double alpha);
AOTITorchError aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu(
    AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value, double dropout_p, std::int32_t is_causal,
    AtenTensorHandle* attn_mask, double* scale, AtenTensorHandle* made_output, AtenTensorHandle* made_log_sums);
AOTITorchError aoti_torch_cpu_convolution(AtenTensorHandle input, AtenTensorHandle weight, AtenTensorHandle* bias,
                                          const std::int64_t* stride, std::int64_t num_strides,
                                          const std::int64_t* padding, std::int64_t num_paddings,
                                          const std::int64_t* dilation, std::int64_t num_dilations,
                                          std::int32_t transposed, const std::int64_t* output_padding,
                                          std::int64_t num_output_paddings, std::int64_t groups,
                                          AtenTensorHandle* made);

#ifdef __x86_64__
#define REGPLUG_VECTOR(vector, number, count, flags, name, function) \
  __attribute__((target(flags))) vector name(vector given);
#define REGPLUG_VECTOR_2(vector, number, count, flags, name, function) \
  __attribute__((target(flags))) vector name(vector given, vector other);
#define REGPLUG_VECTOR_V3 REGPLUG_VECTOR
#define REGPLUG_VECTOR_V4 REGPLUG_VECTOR
#include "vector_functions.inc"
#endif

}  // namespace regplug::runtime
