// Between our tensors and at::Tensor, and torch's faults as ours.
#pragma once

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/runtime/jit_exception.h>

#include <cstddef>
#include <cstring>
#include <string>

#include "regplug/dtype.h"
#include "regplug/error.h"
#include "regplug/guard.h"
#include "regplug/safetensors.h"
#include "regplug/view.h"

namespace regplug {
namespace detail {

// torch's name of a dtype, as in Python: "float32".
inline std::string dtype_name(at::ScalarType dtype) { return std::string(c10::getDtypeNames(dtype).first); }

inline at::ScalarType to_dtype(const std::string& name) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort,
                                     at::kChar, at::kByte, at::kBool}) {
    if (dtype_name(dtype) == name) return dtype;
  }
  throw Error("dtype: expected one that safetensors has, got " + name + ".");
}

inline std::string signature(const at::Tensor& tensor) {
  return dtype_name(tensor.scalar_type()) + " " + listed(tensor.sizes());
}

// What happened, in one line. What the interpreter reports begins with a traceback and ends with the error.
inline std::string told(const std::string& text) {
  if (text.rfind("The following operation failed in the TorchScript interpreter", 0) != 0) return first_line(text);
  const std::size_t end = text.find_last_not_of('\n') + 1;
  return text.substr(0, end).substr(text.find_last_of('\n', end - 1) + 1);
}

// Calls `call()`; what it throws comes out as Error, "OBJECT: LINE".
template <typename Call>
auto guarded(const std::string& object, Call call) -> decltype(call()) {
  return as_error(object, [&] {
    try {
      return call();
    } catch (const torch::jit::JITException& error) {  // the module's own `raise`
      throw Error(object + ": " + told(error.getOriginalMsg().value_or(error.what())));
    } catch (const c10::Error& error) {
      throw Error(object + ": " + told(error.what_without_backtrace()));
    }
  });
}

}  // namespace detail

// A copy in memory of its own, with the strides of the view, on the CPU.
inline at::Tensor to_tensor(const TensorView& view) {
  const at::IntArrayRef sizes(view.sizes().data(), view.sizes().size());
  const at::IntArrayRef strides(view.strides().data(), view.strides().size());
  at::Tensor tensor = at::empty_strided(sizes, strides, detail::to_dtype(dtype_name(view.dtype())));
  if (tensor.numel() == 0) return tensor;
  std::size_t last = 0;  // item; the memory between the items is copied with them
  for (std::size_t i = 0; i < sizes.size(); ++i) last += static_cast<std::size_t>((sizes[i] - 1) * strides[i]);
  std::memcpy(tensor.data_ptr(), view.data(), (last + 1) * item_size(view.dtype()));
  return tensor;
}

// The tensor stays the owner.
inline TensorView view_of(const at::Tensor& tensor) {
  return TensorView(dtype_named(detail::dtype_name(tensor.scalar_type())), tensor.const_data_ptr(),
                    Sizes(tensor.sizes().data(), tensor.sizes().size()),
                    Sizes(tensor.strides().data(), tensor.strides().size()));
}

// A copy in memory of its own, on the CPU.
inline at::Tensor to_tensor(const TensorBytes& entry) {
  const at::ScalarType dtype = detail::to_dtype(entry.dtype);
  // A stored bool may be any byte; only 0 and 1 are values of the type.
  at::Tensor tensor = at::empty(entry.shape, dtype == at::kBool ? at::kByte : dtype);
  if (!entry.bytes.empty()) std::memcpy(tensor.data_ptr(), entry.bytes.data(), entry.bytes.size());
  return dtype == at::kBool ? tensor.ne(0) : tensor;
}

}  // namespace regplug
