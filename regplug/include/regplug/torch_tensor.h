// Converts between our tensors and at::Tensor.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/runtime/jit_exception.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>
#include <string_view>

#include "regplug/detail/translate_errors.h"
#include "regplug/dtype.h"
#include "regplug/error.h"
#include "regplug/safetensors.h"
#include "regplug/tensor.h"

namespace regplug {
namespace detail {

// torch's name of a dtype, as in Python: "float32".
inline std::string dtype_name(at::ScalarType dtype) { return std::string(c10::getDtypeNames(dtype).first); }

inline at::ScalarType to_dtype(const std::string& name) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort,
                                     at::kChar, at::kByte, at::kBool}) {
    if (dtype_name(dtype) == name) return dtype;
  }
  throw Error("dtype: expected a dtype of safetensors, got " + name + ".");
}

inline std::string signature(const at::Tensor& tensor) {
  return dtype_name(tensor.scalar_type()) + " " + format_list(tensor.sizes());
}

// One line of an exception of torch. The interpreter's text begins with a traceback and ends with the error.
inline std::string torch_line(const std::exception& error) {
  std::string text = error.what();
  if (const auto* raised = dynamic_cast<const torch::jit::JITException*>(&error)) {  // the module's own `raise`
    text = raised->getOriginalMsg().value_or(text);
  } else if (const auto* torch_error = dynamic_cast<const c10::Error*>(&error)) {
    text = torch_error->what_without_backtrace();
  }
  if (text.rfind("The following operation failed in the TorchScript interpreter", 0) != 0) return first_line(text);
  const std::size_t end = text.find_last_not_of('\n') + 1;
  return text.substr(0, end).substr(text.find_last_of('\n', end - 1) + 1);
}

// As translate_errors, with torch's exceptions on one line.
template <typename Call>
auto translate_torch_errors(std::string_view object, Call call) -> decltype(call()) {
  return translate_errors(object, call, torch_line);
}

// Why a tensor has no plain memory on the CPU, and what to do about it; empty when it has.
inline std::string not_plain(const at::Tensor& tensor) {
  if (!tensor.defined()) return "no tensor";
  if (tensor.is_nested()) return "a nested one; use to_padded_tensor()";
  if (tensor.layout() != at::kStrided) return "another layout; use to_dense()";
  if (tensor.is_meta()) return "one on the meta device, which has no data";
  if (!tensor.device().is_cpu()) return "device " + tensor.device().str() + "; use cpu()";
  if (tensor.is_quantized()) return "a quantized one; use dequantize()";
  if (tensor._is_zerotensor()) return "one of zeros without memory; use clone()";
  const c10::DispatchKeySet plain({c10::DispatchKey::CPU, c10::DispatchKey::ADInplaceOrView,
                                   c10::DispatchKey::AutogradCPU, c10::DispatchKey::AutocastCPU,
                                   c10::DispatchKey::Negative, c10::DispatchKey::Conjugate});
  if (!plain.has_all(tensor.key_set())) return "one with an extra dispatch key; use the tensor inside it";
  return "";
}

}  // namespace detail

// A copy on the CPU with the strides of the view. Throws Error when there is no tensor, or a stride is negative.
inline at::Tensor to_tensor(const TensorView& view) {
  if (!view.defined()) throw Error("tensor: expected a tensor, got none.");
  if (std::any_of(view.strides().begin(), view.strides().end(), [](std::int64_t stride) { return stride < 0; })) {
    throw Error("tensor: expected strides >= 0, got " + detail::format_list(view.strides()) + "; use Tensor::copy_of.");
  }
  return detail::translate_torch_errors("tensor", [&] {
    const at::IntArrayRef sizes(view.sizes().data(), view.sizes().size());
    const at::IntArrayRef strides(view.strides().data(), view.strides().size());
    at::Tensor tensor = at::empty_strided(sizes, strides, detail::to_dtype(dtype_name(view.dtype())));
    if (tensor.numel() == 0) return tensor;
    std::size_t last = 0;  // item; the memory between the items is copied with them
    for (std::size_t i = 0; i < sizes.size(); ++i) last += static_cast<std::size_t>((sizes[i] - 1) * strides[i]);
    std::memcpy(tensor.data_ptr(), view.data(), (last + 1) * item_size(view.dtype()));
    return tensor;
  });
}

// A view without a copy; the tensor stays the owner. Throws Error when its memory does not hold its numbers as they
// are.
inline TensorView view_of(const at::Tensor& tensor) {
  return detail::translate_torch_errors("tensor", [&] {
    std::string found = detail::not_plain(tensor);
    if (found.empty() && tensor.is_neg()) found = "one that is negated lazily; use resolve_neg()";
    if (found.empty() && tensor.is_conj()) found = "one that is conjugated lazily; use resolve_conj()";
    if (!found.empty()) throw Error("tensor: expected a dense tensor on the CPU, got " + found + ".");
    return TensorView(dtype_named(detail::dtype_name(tensor.scalar_type())), tensor.const_data_ptr(),
                      Sizes(tensor.sizes().data(), tensor.sizes().size()),
                      Sizes(tensor.strides().data(), tensor.strides().size()));
  });
}

// A copy on the CPU.
inline at::Tensor to_tensor(const TensorBytes& entry) {
  const TensorView checked(entry);
  return detail::translate_torch_errors("tensor", [&] {
    const at::ScalarType dtype = detail::to_dtype(entry.dtype);
    // A stored bool may be any byte, but only 0 and 1 are valid values.
    at::Tensor tensor = at::empty(entry.shape, dtype == at::kBool ? at::kByte : dtype);
    if (checked.nbytes() != 0) std::memcpy(tensor.data_ptr(), entry.bytes.data(), checked.nbytes());
    return dtype == at::kBool ? tensor.ne(0) : tensor;
  });
}

}  // namespace regplug
