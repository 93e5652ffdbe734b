// Opens a bundle and runs its TorchScript program. A program is the bundle author's code, and opening this class agrees
// to run it; pin the digest to run only the program you know.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/Dict.h>
#include <ATen/core/stack.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "regplug/bundle.h"
#include "regplug/detail/loading_lock.h"
#include "regplug/detail/program_bundle.h"
#include "regplug/detail/program_checks.h"
#include "regplug/detail/torchscript_archive.h"
#include "regplug/detail/torchscript_outputs.h"
#include "regplug/detail/translate_errors.h"
#include "regplug/detail/weights.h"
#include "regplug/error.h"
#include "regplug/golden.h"
#include "regplug/inputs.h"
#include "regplug/manifest.h"
#include "regplug/safetensors.h"
#include "regplug/tensor.h"
#include "regplug/torch_tensor.h"

namespace regplug {

// One of the inputs of a call, by its name in the manifest; it does not own the name.
struct NamedTensor {
  std::string_view name;
  at::Tensor tensor;
};

// Movable. Any number of threads may run it, while another reloads its weights.
class TorchScriptBundle : public detail::ProgramBundle<at::Tensor, detail::LoadedModule> {
 public:
  // Checks the whole folder, loads the program and its weights, and compares one golden case.
  // Throws Error. `pin` is the digest the bundle must have; empty: any.
  static TorchScriptBundle open(const std::string& dir, const std::string& pin = "") { return open(dir, pinned(pin)); }

  static TorchScriptBundle open(const std::string& dir, const Options& options) {
    const Bundle bundle = Bundle::open(dir, options, kBackend);
    TorchScriptBundle opened(dir, options, bundle);
    const std::string object = "bundle " + dir + ": " + kProgram;
    detail::translate_torch_errors(object, [&] {
      detail::check_golden(object, bundle, [&](const std::vector<NamedView>& views) {
        std::vector<NamedTensor> inputs;
        for (const NamedView& input : views) inputs.push_back({input.name, to_tensor(input.view)});
        std::vector<Tensor> outputs;
        for (const at::Tensor& output : opened.forward(inputs)) {
          outputs.push_back(Tensor::copy_of(view_of(output)));
        }
        return outputs;
      });
    });
    return opened;
  }

  // registers or tokens [B, R, D], or images with a backbone inside -> conditioning [B, cond_dim]. Thread-safe. The
  // result owns its memory; it is an inference tensor: clone() it outside c10::InferenceMode before autograd or an
  // in-place operation there. Throws Error when the input does not fit, or the program fails.
  at::Tensor run(const at::Tensor& input) const {
    check_readout();
    return forward(input).front();
  }

  // All inputs by name, in any order: run({{"tokens", tokens}, {"mask", mask}}).
  at::Tensor run(const std::vector<NamedTensor>& inputs) const {
    check_readout();
    return forward(inputs).front();
  }

  // tokens [B, T, D], or images -> (gamma, beta), each [B, width], for every FiLM layer in order. Otherwise as `run`.
  std::vector<std::pair<at::Tensor, at::Tensor>> run_film(const at::Tensor& input) const {
    check_conditioner();
    return pairs_of(forward(input));
  }

  std::vector<std::pair<at::Tensor, at::Tensor>> run_film(const std::vector<NamedTensor>& inputs) const {
    check_conditioner();
    return pairs_of(forward(inputs));
  }

  // Loads the weights of a safetensors file; calls of `run` that are under way end with the old ones.
  // Throws Error, and keeps the old weights, when they do not fit.
  void reload_weights(const std::string& file) {
    check_open();
    const std::string label = "weights " + file;
    detail::translate_torch_errors(label, [&] {
      const std::shared_ptr<const detail::LoadedModule> old = weights();
      const SafeTensors stored =
          detail::read_weights(file, follow_links_, detail::weight_specs_of(old->module), manifest_);
      const at::NoGradGuard no_grad;  // or each set of weights would keep the one it was copied from
      const torch::jit::Module fresh = old->module.deepcopy();
      detail::copy_weights(fresh, stored, label);
      set_weights(
          std::make_shared<const detail::LoadedModule>(detail::LoadedModule{fresh, old->code, old->parameters}));
    });
  }

 private:
  static constexpr const char* kBackend = "torchscript";
  static constexpr const char* kProgram = "program 'torchscript'";

  TorchScriptBundle(const std::string& dir, const Options& options, const Bundle& bundle)
      : ProgramBundle(dir, options, bundle), dtype_(detail::to_dtype(manifest_.input.dtype)) {
    const std::string label = "bundle " + dir + ": ";
    detail::translate_torch_errors(label + bundle.program().file, [&] {
      const std::lock_guard<std::mutex> lock(detail::loading_lock);
      const detail::NoAutocast no_autocast;
      const torch::jit::Module loaded = detail::load_archive(bundle.program_bytes().view());
      detail::copy_weights(loaded, bundle.weights(), label + "weights.safetensors");
      const torch::jit::Module module = detail::freeze(loaded);
      set_weights(std::make_shared<const detail::LoadedModule>(
          detail::LoadedModule{module, detail::compile(module), detail::parameters_of(module)}));
    });
  }

  std::vector<at::Tensor> forward(const at::Tensor& input) const {
    return detail::translate_torch_errors(kProgram, [&] {
      detail::check_single(kProgram, manifest_);
      return compute([&](std::size_t) -> const at::Tensor& { return input; });
    });
  }

  std::vector<at::Tensor> forward(const std::vector<NamedTensor>& inputs) const {
    return detail::translate_torch_errors(kProgram, [&] {
      const auto ordered = detail::in_order(kProgram, manifest_, inputs.data(), inputs.size());
      return compute([&](std::size_t i) -> const at::Tensor& { return ordered[i]->tensor; });
    });
  }

  // `input_at(i)` gives the inputs in the manifest's order.
  template <typename InputAt>
  std::vector<at::Tensor> compute(InputAt input_at) const {
    const at::Tensor& input = input_at(0);
    for (std::size_t i = 0; i < manifest_.num_inputs(); ++i) check_input(i, input_at(i), input);
    if (manifest_.has_mask()) check_mask(input_at(1));
    const c10::InferenceMode inference;
    const detail::NoAutocast no_autocast;
    if (input.size(0) == 0) return empty_outputs();
    const std::shared_ptr<const detail::LoadedModule> current = weights();
    // Not Module::forward: each call of it finds the method by name, compares the arguments with its schema and
    // asks the executor for a plan, which takes longer than the checks here.
    torch::jit::Stack stack;
    stack.reserve(2 + current->parameters.size());
    stack.push_back(current->module._ivalue());
    stack.emplace_back(input.contiguous());
    for (const detail::Parameter& parameter : current->parameters) stack.push_back(argument(parameter, input_at));
    torch::jit::InterpreterState(current->code).run(stack);
    std::vector<at::Tensor> outputs = detail::flatten(kProgram, torch::jit::pop(stack));
    check_outputs(outputs, input.size(0));
    detail::copy_shared(outputs);
    return outputs;
  }

  template <typename InputAt>
  c10::IValue argument(const detail::Parameter& parameter, InputAt input_at) const {
    const std::size_t first_vector = manifest_.has_mask() ? 2 : 1;
    if (parameter.takes == detail::Parameter::Takes::mask && first_vector == 2) return input_at(1).contiguous();
    if (parameter.takes != detail::Parameter::Takes::vectors || first_vector == manifest_.num_inputs()) {
      return parameter.otherwise;
    }
    c10::Dict<std::string, at::Tensor> vectors;
    for (std::size_t i = first_vector; i < manifest_.num_inputs(); ++i) {
      vectors.insert(manifest_.input_at(i).name, input_at(i).contiguous());
    }
    return vectors;
  }

  // No program runs on an empty batch: attention divides by the batch size.
  std::vector<at::Tensor> empty_outputs() const {
    std::vector<at::Tensor> outputs;
    outputs.reserve(manifest_.outputs.size());
    for (const TensorSpec& output : manifest_.outputs) outputs.push_back(at::empty({0, output.shape[1]}, dtype_));
    return outputs;
  }

  [[noreturn]] static void fail(const std::string& text) { detail::reject(kProgram, text); }

  // `first` is the first input, which is checked before the others.
  void check_input(std::size_t i, const at::Tensor& input, const at::Tensor& first) const {
    const TensorSpec& wanted = manifest_.input_at(i);
    const bool is_mask = i == 1 && manifest_.has_mask();
    const auto refuse = [&](const std::string& text) { fail(detail::label_of(manifest_, i) + "expected " + text); };
    if (!input.defined() && i == 0) detail::reject_input(kProgram, wanted, "", "no tensor");
    if (!input.defined()) detail::reject_more_input(kProgram, wanted, first.sizes().data(), "no tensor");
    if (input.is_nested()) refuse("a dense tensor, got a nested one.");  // which has no sizes
    const at::IntArrayRef sizes = input.sizes();
    if (i == 0) {
      detail::check_shape(kProgram, manifest_, sizes.data(), sizes.size());
    } else {
      detail::check_more_shape(kProgram, wanted, first.sizes().data(), sizes.data(), sizes.size());
    }
    if (input.scalar_type() != (is_mask ? at::kBool : dtype_)) {
      detail::reject_dtype(kProgram, manifest_, i, detail::dtype_name(input.scalar_type()));
    }
    if (!input.device().is_cpu()) refuse("device cpu, got " + input.device().str() + ".");
    if (input.layout() != at::kStrided) refuse("a dense tensor, got another layout.");
    const std::string found = detail::not_plain(input);
    if (!found.empty()) refuse("a dense tensor on the CPU, got " + found + ".");
  }

  void check_mask(const at::Tensor& mask) const {
    const char* const bytes = static_cast<const char*>(mask.const_data_ptr());
    detail::check_mask(kProgram, manifest_, {bytes, mask.sizes().data(), mask.strides().data()});
  }

  void check_outputs(const std::vector<at::Tensor>& outputs, std::int64_t batch) const {
    bool fits = outputs.size() == manifest_.outputs.size();
    for (std::size_t i = 0; fits && i < outputs.size(); ++i) {
      fits = outputs[i].scalar_type() == dtype_ && outputs[i].dim() == 2 && outputs[i].size(0) == batch &&
             outputs[i].size(1) == manifest_.outputs[i].shape[1];
    }
    for (const at::Tensor& output : outputs) {
      if (output.layout() != at::kStrided) fail("expected dense outputs, got another layout.");
    }
    if (fits) return;
    std::vector<std::string> got;
    for (const at::Tensor& output : outputs) got.push_back(detail::signature(output));
    detail::reject_outputs(kProgram, manifest_, batch, got);
  }

  at::ScalarType dtype_;
};

}  // namespace regplug
