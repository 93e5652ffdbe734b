// Loads a TorchScript archive from memory, copies weights into it, and makes its code ready to run.
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
#include <vector>

#include "regplug/detail/weights.h"
#include "regplug/safetensors.h"
#include "regplug/torch_tensor.h"

namespace regplug::detail {

// Lets torch's zip reader read bytes in memory.
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

// Turns autocast off in this thread for its lifetime: a program keeps its dtype when the host has autocast on. Its plan
// is made without autocast too, or it would keep the casts forever.
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

// The caller holds `loading_lock`.
inline torch::jit::Module load_archive(std::string_view bytes) {
  return torch::jit::load(std::make_shared<MemoryReader>(bytes), at::kCPU, /*load_debug_files=*/false);
}

inline std::map<std::string, at::Tensor> state_of(const torch::jit::Module& module) {
  std::map<std::string, at::Tensor> state;
  for (const auto& parameter : module.named_parameters()) state[parameter.name] = parameter.value;
  for (const auto& buffer : module.named_buffers()) state[buffer.name] = buffer.value;
  return state;
}

// The weights that a module expects.
inline WeightSpecs weight_specs_of(const torch::jit::Module& module) {
  WeightSpecs expected;
  for (const auto& [name, tensor] : state_of(module)) {
    expected[name] = {dtype_name(tensor.scalar_type()), tensor.sizes().vec(), {}};
  }
  return expected;
}

// A parameter of `forward` after the input.
struct Parameter {
  enum class Takes { mask, vectors, nothing_of_ours };
  Takes takes;
  c10::IValue otherwise;  // its default, or None
};

inline std::vector<Parameter> parameters_of(const torch::jit::Module& module) {
  std::vector<Parameter> parameters;
  const std::vector<c10::Argument>& arguments = module.get_method("forward").function().getSchema().arguments();
  for (std::size_t i = 2; i < arguments.size(); ++i) {  // after the module itself and the input
    const std::string& name = arguments[i].name();
    if (name == "mask" || name == "vectors") {
      parameters.push_back({name == "mask" ? Parameter::Takes::mask : Parameter::Takes::vectors, {}});
    } else {
      parameters.push_back({Parameter::Takes::nothing_of_ours, arguments[i].default_value().value_or(c10::IValue())});
    }
  }
  return parameters;
}

// One set of weights and the code that runs it; never changed once other threads can see it.
struct LoadedModule {
  torch::jit::Module module;
  torch::jit::Code code;  // shared by every set of weights: each compilation would add to the archive's types forever
  std::vector<Parameter> parameters;
};

// Copies the weights into a module that nothing runs yet. Compares all names, shapes and dtypes first: torch silently
// takes a tensor of another shape.
inline void copy_weights(const torch::jit::Module& module, const SafeTensors& weights, const std::string& label) {
  check_weights(weight_specs_of(module), weights, label);
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : state_of(module)) tensor.copy_(to_tensor(weights.at(name)));
}

// Makes options constants. The weights stay parameters: as constants they made the chain with FiLM slower.
inline torch::jit::Module freeze(const torch::jit::Module& module) {
  try {
    torch::jit::Module constant =
        torch::jit::freeze_module(module, {}, /*freezeInterfaces=*/true, /*preserveParameters=*/true);
    const bool whole = keys_of(state_of(constant)) == keys_of(state_of(module));
    return whole ? constant : module;  // where a buffer became a constant, no reload would reach it
  } catch (const c10::Error&) {        // it has an interface, or forks: it runs unfrozen
    return module;
  }
}

inline torch::jit::Code compile(const torch::jit::Module& module) {
  // The profiling executor costs 30 to 110 ms at the first call and gains nothing here. The guard holds for this
  // thread; the host's setting stays.
  const torch::jit::GraphOptimizerEnabledGuard no_optimizer(false);
  torch::jit::Stack unused;  // this plan does not depend on it
  const torch::jit::Method forward = module.get_method("forward");
  return torch::jit::toGraphFunction(forward.function()).get_executor().getPlanFor(unused).code;
}

}  // namespace regplug::detail
