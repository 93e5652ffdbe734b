// Opens a bundle and runs its TorchScript program. A program is the bundle author's code, and opening this class agrees
// to run it; pin the digest to run only the program you know.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/stack.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "regplug/bundle.h"
#include "regplug/detail/loading_lock.h"
#include "regplug/detail/program_bundle.h"
#include "regplug/detail/program_checks.h"
#include "regplug/detail/torchscript_archive.h"
#include "regplug/detail/translate_errors.h"
#include "regplug/detail/weights.h"
#include "regplug/error.h"
#include "regplug/golden.h"
#include "regplug/manifest.h"
#include "regplug/safetensors.h"
#include "regplug/tensor.h"
#include "regplug/torch_tensor.h"

namespace regplug {

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
      detail::check_golden(object, bundle, [&](const TensorView& input) {
        std::vector<Tensor> outputs;
        for (const at::Tensor& output : opened.forward(to_tensor(input))) {
          outputs.push_back(Tensor::copy_of(view_of(output)));
        }
        return outputs;
      });
    });
    return opened;
  }

  // registers [B, R, D], or images with a backbone inside -> conditioning [B, cond_dim]. Thread-safe. The result owns
  // its memory; it is an inference tensor: clone() it outside c10::InferenceMode before autograd or an in-place
  // operation there. Throws Error when the input does not fit, or the program fails.
  at::Tensor run(const at::Tensor& input) const {
    check_readout();
    return forward(input).front();
  }

  // tokens [B, T, D], or images -> (gamma, beta), each [B, width], for every FiLM layer in order. Otherwise as `run`.
  std::vector<std::pair<at::Tensor, at::Tensor>> run_film(const at::Tensor& input) const {
    check_conditioner();
    return pairs_of(forward(input));
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
      set_weights(std::make_shared<const detail::LoadedModule>(detail::LoadedModule{fresh, old->code}));
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
      set_weights(std::make_shared<const detail::LoadedModule>(detail::LoadedModule{module, detail::compile(module)}));
    });
  }

  std::vector<at::Tensor> forward(const at::Tensor& input) const {
    return detail::translate_torch_errors(kProgram, [&] {
      check_input(input);
      const c10::InferenceMode inference;
      const detail::NoAutocast no_autocast;
      if (input.size(0) == 0) return empty_outputs();
      const std::shared_ptr<const detail::LoadedModule> current = weights();
      // Not Module::forward: each call of it finds the method by name, compares the arguments with its schema and
      // asks the executor for a plan, which takes longer than the checks here.
      torch::jit::Stack stack;
      stack.reserve(2);
      stack.push_back(current->module._ivalue());
      stack.emplace_back(input.contiguous());
      torch::jit::InterpreterState(current->code).run(stack);
      std::vector<at::Tensor> outputs = flatten(torch::jit::pop(stack));
      check_outputs(outputs, input.size(0));
      copy_shared(outputs);
      return outputs;
    });
  }

  // No program runs on an empty batch: attention divides by the batch size.
  std::vector<at::Tensor> empty_outputs() const {
    std::vector<at::Tensor> outputs;
    outputs.reserve(manifest_.outputs.size());
    for (const TensorSpec& output : manifest_.outputs) outputs.push_back(at::empty({0, output.shape[1]}, dtype_));
    return outputs;
  }

  // A module may return its input, a weight, or a view of them: the caller gets its own copy. Pairs may be views of one
  // block of memory.
  static void copy_shared(std::vector<at::Tensor>& outputs) {
    const c10::StorageImpl* const block = outputs.front().storage().unsafeGetStorageImpl();
    const auto in_block = [&](const at::Tensor& one) { return one.storage().unsafeGetStorageImpl() == block; };
    const std::size_t sharing = std::all_of(outputs.begin(), outputs.end(), in_block) ? outputs.size() : 1;
    const auto owned = [&](const at::Tensor& one) {
      return one.use_count() == 1 && one.storage().use_count() == sharing;
    };
    if (std::all_of(outputs.begin(), outputs.end(), owned)) return;
    for (at::Tensor& output : outputs) output = output.clone();
  }

  [[noreturn]] static void fail(const std::string& text) { detail::reject(kProgram, text); }

  void check_input(const at::Tensor& input) const {
    if (!input.defined()) detail::reject_input(kProgram, manifest_.input, "", "no tensor");
    if (input.is_nested()) fail("expected a dense tensor, got a nested one.");  // which has no sizes
    detail::check_shape(kProgram, manifest_, input.sizes().data(), input.sizes().size());
    if (input.scalar_type() != dtype_) {
      detail::reject_dtype(kProgram, manifest_, detail::dtype_name(input.scalar_type()));
    }
    if (!input.device().is_cpu()) fail("expected device cpu, got " + input.device().str() + ".");
    if (input.layout() != at::kStrided) fail("expected a dense tensor, got another layout.");
    const std::string found = detail::not_plain(input);
    if (!found.empty()) fail("expected a dense tensor on the CPU, got " + found + ".");
  }

  // A tensor, or a list of (gamma, beta). Tensors leave their containers, so that use counts show other owners.
  std::vector<at::Tensor> flatten(c10::IValue result) const {
    std::vector<at::Tensor> outputs;
    outputs.reserve(manifest_.outputs.size());
    const auto take = [&](const c10::IValue& value) {
      if (!value.isTensor()) fail("expected a tensor or a list of pairs, got " + value.tagKind() + ".");
      outputs.push_back(value.toTensor());
    };
    if (!result.isList()) {
      take(result);
      return outputs;
    }
    for (const c10::IValue& pair : result.toListRef()) {
      if (!pair.isTuple()) fail("expected a tensor or a list of pairs, got a list of " + pair.tagKind() + ".");
      for (const c10::IValue& one : pair.toTupleRef().elements()) take(one);
    }
    return outputs;
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
