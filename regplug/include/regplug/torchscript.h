// Opens a bundle and runs its TorchScript program. A program is code from whoever made the bundle: opening this class
// is agreeing to run it; pin the digest to run none but the one you know.
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
class TorchScriptBundle {
 public:
  // Checks the whole folder, loads the program and its weights, and compares one golden case.
  // Throws Error. `pin` is the digest the bundle must have; empty: any.
  static TorchScriptBundle open(const std::string& dir, const std::string& pin = "") {
    Options options;
    options.pin = pin;
    return open(dir, options);
  }

  static TorchScriptBundle open(const std::string& dir, const Options& options) {
    const Bundle bundle = Bundle::open(dir, options, kBackend);
    TorchScriptBundle opened(dir, options, bundle);
    const std::string object = "bundle " + dir + ": " + kProgram;
    detail::guarded(object, [&] {
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
    if (!shared_) detail::refuse_moved_from();
    if (manifest().is_conditioner()) throw Error("bundle " + dir_ + ": holds a conditioner; use run_film.");
    return forward(input).front();
  }

  // tokens [B, T, D], or images -> (gamma, beta), each [B, width], for every FiLM layer in order. As `run` in all else.
  std::vector<std::pair<at::Tensor, at::Tensor>> run_film(const at::Tensor& input) const {
    if (!shared_) detail::refuse_moved_from();
    if (!manifest().is_conditioner()) throw Error("bundle " + dir_ + ": holds a readout; use run.");
    std::vector<at::Tensor> flat = forward(input);
    std::vector<std::pair<at::Tensor, at::Tensor>> pairs;
    pairs.reserve(flat.size() / 2);
    for (std::size_t i = 0; i + 1 < flat.size(); i += 2) pairs.emplace_back(std::move(flat[i]), std::move(flat[i + 1]));
    return pairs;
  }

  std::int64_t cond_dim() const { return manifest_.cond_dim; }
  const Manifest& manifest() const { return manifest_; }
  const std::string& digest() const { return digest_; }

  // Takes the weights of a lone safetensors file that fits; calls of `run` under way end with the old ones.
  // Throws Error, and keeps the old weights, when it does not fit.
  void reload_weights(const std::string& file) {
    if (!shared_) detail::refuse_moved_from();
    const std::string label = "weights " + file;
    detail::guarded(label, [&] {
      const std::shared_ptr<const Loaded> old = current();
      const SafeTensors weights =
          detail::read_weights(file, follow_links_, detail::signatures_of(old->module), manifest_);
      const at::NoGradGuard no_grad;  // or each set of weights would keep the one it was copied from
      const torch::jit::Module fresh = old->module.deepcopy();
      detail::set_weights(fresh, weights, label);
      auto loaded = std::make_shared<const Loaded>(Loaded{fresh, old->code});
      const std::lock_guard<std::mutex> lock(shared_->mutex);
      shared_->loaded = std::move(loaded);
    });
  }

 private:
  static constexpr const char* kBackend = "torchscript";
  static constexpr const char* kProgram = "program 'torchscript'";

  // One set of weights and the code that runs them; never changed once others can see it.
  struct Loaded {
    torch::jit::Module module;
    torch::jit::Code code;  // of every set of weights: to compile it anew would add to the archive's types for ever
  };

  struct Shared {
    std::mutex mutex;
    std::shared_ptr<const Loaded> loaded;
  };

  TorchScriptBundle(const std::string& dir, const Options& options, const Bundle& bundle)
      : dir_(dir),
        follow_links_(options.follow_links),
        manifest_(bundle.manifest()),
        digest_(bundle.digest()),
        dtype_(detail::to_dtype(manifest_.input.dtype)),
        shared_(std::make_unique<Shared>()) {
    const std::string label = "bundle " + dir + ": ";
    detail::guarded(label + bundle.program().file, [&] {
      const std::lock_guard<std::mutex> lock(detail::torch_loading);
      const detail::NoAutocast no_autocast;
      const torch::jit::Module loaded = detail::load_archive(bundle.program_bytes().view());
      detail::set_weights(loaded, bundle.weights(), label + "weights.safetensors");
      const torch::jit::Module module = detail::frozen(loaded);
      shared_->loaded = std::make_shared<const Loaded>(Loaded{module, detail::compiled(module)});
    });
  }

  std::shared_ptr<const Loaded> current() const {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    return shared_->loaded;
  }

  std::vector<at::Tensor> forward(const at::Tensor& input) const {
    return detail::guarded(kProgram, [&] {
      check_input(input);
      const c10::InferenceMode inference;
      const detail::NoAutocast no_autocast;
      if (input.size(0) == 0) return no_samples();
      const std::shared_ptr<const Loaded> loaded = current();
      // Not Module::forward: it finds the method by name, compares the arguments with its schema and asks the executor
      // for a plan, each time anew, which takes longer than the checks here.
      torch::jit::Stack stack;
      stack.reserve(2);
      stack.push_back(loaded->module._ivalue());
      stack.emplace_back(input.contiguous());
      torch::jit::InterpreterState(loaded->code).run(stack);
      std::vector<at::Tensor> outputs = flatten(torch::jit::pop(stack));
      check_outputs(outputs, input.size(0));
      own(outputs);
      return outputs;
    });
  }

  // No program is asked for nothing: attention divides by the batch.
  std::vector<at::Tensor> no_samples() const {
    std::vector<at::Tensor> outputs;
    outputs.reserve(manifest_.outputs.size());
    for (const Signature& output : manifest_.outputs) outputs.push_back(at::empty({0, output.shape[1]}, dtype_));
    return outputs;
  }

  // A module may return its input, a weight, or a view of them: whoever calls gets memory of his own. Pairs may lie in
  // one block, as views of it.
  static void own(std::vector<at::Tensor>& outputs) {
    const c10::StorageImpl* const block = outputs.front().storage().unsafeGetStorageImpl();
    const auto in_block = [&](const at::Tensor& one) { return one.storage().unsafeGetStorageImpl() == block; };
    const std::size_t sharing = std::all_of(outputs.begin(), outputs.end(), in_block) ? outputs.size() : 1;
    const auto owned = [&](const at::Tensor& one) {
      return one.use_count() == 1 && one.storage().use_count() == sharing;
    };
    if (std::all_of(outputs.begin(), outputs.end(), owned)) return;
    for (at::Tensor& output : outputs) output = output.clone();
  }

  [[noreturn]] static void fail(const std::string& text) { detail::refuse(kProgram, text); }

  void check_input(const at::Tensor& input) const {
    if (!input.defined()) detail::refuse_input(kProgram, manifest_.input, "", "no tensor");
    if (input.is_nested()) fail("expected a dense tensor, got a nested one.");  // which has no sizes
    detail::check_shape(kProgram, manifest_, input.sizes().data(), input.sizes().size());
    if (input.scalar_type() != dtype_) {
      detail::refuse_dtype(kProgram, manifest_, detail::dtype_name(input.scalar_type()));
    }
    if (!input.device().is_cpu()) fail("expected device cpu, got " + input.device().str() + ".");
    if (input.layout() != at::kStrided) fail("expected a dense tensor, got another layout.");
    const std::string found = detail::not_plain(input);
    if (!found.empty()) fail("expected a dense tensor on the CPU, got " + found + ".");
  }

  // A tensor, or a list of (gamma, beta). Tensors leave their containers, so that their counts say who else holds them.
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
    detail::refuse_outputs(kProgram, manifest_, batch, got);
  }

  std::string dir_;
  bool follow_links_;
  Manifest manifest_;
  std::string digest_;
  at::ScalarType dtype_;
  std::unique_ptr<Shared> shared_;
};

}  // namespace regplug
