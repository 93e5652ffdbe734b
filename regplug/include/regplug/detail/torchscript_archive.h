// A TorchScript archive loaded from memory, the weights inside it, and its code made ready to run.
#pragma once

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <caffe2/serialize/read_adapter_interface.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/runtime/interpreter.h>
#include <torch/csrc/jit/serialization/import.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "regplug/detail/weights.h"
#include "regplug/safetensors.h"
#include "regplug/torch_tensor.h"

namespace regplug::detail {

// Gives torch's zip reader bytes that are in memory already.
class MemoryReader final : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit MemoryReader(std::string_view bytes) : bytes_(bytes) {}
  size_t size() const override { return bytes_.size(); }
  size_t read(uint64_t position, void* place, size_t count, const char*) const override {
    if (position >= bytes_.size()) return 0;
    return bytes_.copy(static_cast<char*>(place), count, static_cast<size_t>(position));
  }

 private:
  std::string_view bytes_;
};

// Autocast off in this thread while it lives: a program keeps its own dtype, whatever the host has on. Its plan is made
// without it too, or the casts would be in it forever.
class NoAutocast {
 public:
  NoAutocast() : was_on_(at::autocast::is_autocast_enabled(at::kCPU)) {
    if (was_on_) at::autocast::set_autocast_enabled(at::kCPU, false);
  }
  ~NoAutocast() {
    if (was_on_) at::autocast::set_autocast_enabled(at::kCPU, true);
  }
  NoAutocast(const NoAutocast&) = delete;
  NoAutocast& operator=(const NoAutocast&) = delete;

 private:
  bool was_on_;
};

// Whoever calls holds `torch_loading`.
inline torch::jit::Module load_archive(std::string_view bytes) {
  return torch::jit::load(std::make_shared<MemoryReader>(bytes), at::kCPU, /*load_debug_files=*/false);
}

inline std::map<std::string, at::Tensor> state_of(const torch::jit::Module& module) {
  std::map<std::string, at::Tensor> state;
  for (const auto& parameter : module.named_parameters()) state[parameter.name] = parameter.value;
  for (const auto& buffer : module.named_buffers()) state[buffer.name] = buffer.value;
  return state;
}

// The weights that a module wants.
inline WeightSignatures signatures_of(const torch::jit::Module& module) {
  WeightSignatures wanted;
  for (const auto& [name, tensor] : state_of(module)) {
    wanted[name] = {dtype_name(tensor.scalar_type()), tensor.sizes().vec(), {}};
  }
  return wanted;
}

// Copies the weights into a module nobody runs yet. All names, shapes and dtypes are compared first: torch itself
// takes a tensor of another shape without a word.
inline void set_weights(const torch::jit::Module& module, const SafeTensors& weights, const std::string& label) {
  check_weights(signatures_of(module), weights, label);
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : state_of(module)) tensor.copy_(to_tensor(weights.at(name)));
}

// With options as constants. The weights stay parameters: as constants they made the chain with FiLM slower.
inline torch::jit::Module frozen(const torch::jit::Module& module) {
  try {
    torch::jit::Module constant =
        torch::jit::freeze_module(module, {}, /*freezeInterfaces=*/true, /*preserveParameters=*/true);
    const bool whole = names_of(state_of(constant)) == names_of(state_of(module));
    return whole ? constant : module;  // a buffer became a constant, which no reload would reach
  } catch (const c10::Error&) {  // it has an interface, or forks: it runs as it is
    return module;
  }
}

inline torch::jit::Code compiled(const torch::jit::Module& module) {
  // The profiling executor costs 30 to 110 ms at the first call and gains nothing here. The guard is for this
  // thread: the host's own setting stays.
  const torch::jit::GraphOptimizerEnabledGuard no_optimizer(false);
  torch::jit::Stack nothing;  // which this plan does not look at
  const torch::jit::Method forward = module.get_method("forward");
  return torch::jit::toGraphFunction(forward.function()).get_executor().getPlanFor(nothing).code;
}

}  // namespace regplug::detail
