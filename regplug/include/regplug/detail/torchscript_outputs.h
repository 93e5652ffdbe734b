// What a TorchScript program returned, as tensors that the caller owns.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "regplug/detail/program_checks.h"

namespace regplug::detail {

// A tensor, or a list of (gamma, beta). Tensors leave their containers, so that use counts show other owners.
inline std::vector<at::Tensor> flatten(const char* program, c10::IValue result) {
  const auto fail = [&](const std::string& got) {
    reject(program, "expected a tensor or a list of pairs, got " + got + ".");
  };
  std::vector<at::Tensor> outputs;
  const auto take = [&](const c10::IValue& value) {
    if (!value.isTensor()) fail(value.tagKind());
    outputs.push_back(value.toTensor());
  };
  if (!result.isList()) {
    take(result);
    return outputs;
  }
  outputs.reserve(2 * result.toListRef().size());
  for (const c10::IValue& pair : result.toListRef()) {
    if (!pair.isTuple()) fail("a list of " + pair.tagKind());
    for (const c10::IValue& one : pair.toTupleRef().elements()) take(one);
  }
  return outputs;
}

// A module may return its input, a weight, or a view of them: the caller gets its own copy. Pairs may be views of one
// block of memory.
inline void copy_shared(std::vector<at::Tensor>& outputs) {
  const c10::StorageImpl* const block = outputs.front().storage().unsafeGetStorageImpl();
  const auto in_block = [&](const at::Tensor& one) { return one.storage().unsafeGetStorageImpl() == block; };
  const std::size_t sharing = std::all_of(outputs.begin(), outputs.end(), in_block) ? outputs.size() : 1;
  const auto owned = [&](const at::Tensor& one) {
    return one.use_count() == 1 && one.storage().use_count() == sharing;
  };
  if (std::all_of(outputs.begin(), outputs.end(), owned)) return;
  for (at::Tensor& output : outputs) output = output.clone();
}

}  // namespace regplug::detail
