// Opens a bundle and runs its TorchScript program. A program is code from whoever made the bundle: opening this class
// is agreeing to run it; pin the digest to run none but the one you know.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/runtime/graph_executor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "regplug/archive.h"
#include "regplug/bundle.h"
#include "regplug/error.h"
#include "regplug/folder.h"
#include "regplug/golden.h"
#include "regplug/manifest.h"
#include "regplug/safetensors.h"
#include "regplug/tensor.h"

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
    opened.check_golden(bundle);
    return opened;
  }

  // registers [B, R, D] -> conditioning [B, cond_dim]. Thread-safe. The result owns its memory; it is an inference
  // tensor: clone() it outside c10::InferenceMode before autograd or an in-place operation there.
  // Throws Error when the input does not fit, or the program fails.
  at::Tensor run(const at::Tensor& registers) const {
    if (manifest().is_conditioner()) throw Error("bundle " + dir_ + ": holds a conditioner; use run_film.");
    return forward(registers).front();
  }

  // tokens [B, T, D] -> (gamma, beta), each [B, width], for every FiLM layer in order. As `run` in all else.
  std::vector<std::pair<at::Tensor, at::Tensor>> run_film(const at::Tensor& tokens) const {
    if (!manifest().is_conditioner()) throw Error("bundle " + dir_ + ": holds a readout; use run.");
    std::vector<at::Tensor> flat = forward(tokens);
    std::vector<std::pair<at::Tensor, at::Tensor>> pairs;
    for (std::size_t i = 0; i + 1 < flat.size(); i += 2) pairs.emplace_back(std::move(flat[i]), std::move(flat[i + 1]));
    return pairs;
  }

  std::int64_t cond_dim() const { return manifest_.cond_dim; }
  const Manifest& manifest() const { return manifest_; }
  const std::string& digest() const { return digest_; }

  // Takes the weights of a lone safetensors file that fits; calls of `run` under way end with the old ones.
  // Throws Error, and keeps the old weights, when it does not fit.
  void reload_weights(const std::string& file) {
    const std::string label = "weights " + file;
    detail::guarded(label, [&] {
      const std::shared_ptr<const Loaded> old = current();
      const detail::File opened(AT_FDCWD, file, label, follow_links_, ".");
      std::uint64_t most = SafeTensors::kOverhead;
      for (const auto& item : detail::state_of(old->module)) most += item.second.nbytes();
      if (opened.size() > most) {
        throw Error(label + ": expected at most " + std::to_string(most) + " bytes, got " +
                    std::to_string(opened.size()) + ".");
      }
      const SafeTensors weights(opened.read_all(), label);
      check_metadata(weights, label);
      const torch::jit::Module fresh = old->module.deepcopy();
      detail::set_weights(fresh, weights, label);
      auto loaded = std::make_shared<const Loaded>(fresh);
      const std::lock_guard<std::mutex> lock(shared_->mutex);
      shared_->loaded = std::move(loaded);
    });
  }

 private:
  static constexpr const char* kBackend = "torchscript";
  static constexpr const char* kProgram = "program 'torchscript'";

  // A weights file of this package says what it is; weights of another strategy may have the same shapes.
  void check_metadata(const SafeTensors& weights, const std::string& label) const {
    const auto found = weights.metadata().find("regplug");
    if (found == weights.metadata().end()) return;
    Json said;
    try {
      said = detail::parse_json(found->second);
    } catch (const Error& error) {
      throw Error(label + ": metadata: " + error.what() + ".");
    }
    if (!said.is_object()) throw Error(label + ": metadata: expected a JSON object under 'regplug'.");
    for (const char* key : {"holds", "strategy", "num_registers", "hidden_dim", "options", "film", "layout"}) {
      if (!said.contains(key) || said[key] == manifest_.json[key]) continue;
      throw Error(label + ": " + key + ": expected " + detail::shown(manifest_.json[key]) + ", got " +
                  detail::shown(said[key]) + ".");
    }
  }

  // One set of weights and the code that runs them; never changed once others can see it.
  struct Loaded {
    explicit Loaded(torch::jit::Module filled) : module(std::move(filled)), forward(module.get_method("forward")) {}
    torch::jit::Module module;
    torch::jit::Method forward;
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
    detail::guarded(label + manifest_.program(kBackend)->file, [&] {
      const torch::jit::Module module = detail::load_archive(bundle.program());
      detail::set_weights(module, bundle.weights(), label + "weights.safetensors");
      shared_->loaded = std::make_shared<const Loaded>(module);
    });
  }

  std::shared_ptr<const Loaded> current() const {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    return shared_->loaded;
  }

  std::vector<at::Tensor> forward(const at::Tensor& input) const {
    return detail::guarded(kProgram, [&] {
      check_input(input);
      const std::shared_ptr<const Loaded> loaded = current();
      const c10::InferenceMode inference;
      // The profiling executor costs 30 to 110 ms at the first call and gains nothing here. The guard is for this
      // thread and this call alone: the host's own setting stays.
      const torch::jit::GraphOptimizerEnabledGuard no_optimizer(false);
      std::vector<at::Tensor> outputs = flatten(loaded->forward({input.contiguous()}));
      check_outputs(outputs, input.size(0));
      for (at::Tensor& output : outputs) {
        // A module may return its input, a weight, or views of one tensor: whoever calls gets memory of his own.
        const bool owned = output.use_count() == 1 && output.storage().use_count() == 1 && output.is_contiguous();
        if (!owned) output = output.clone(at::MemoryFormat::Contiguous);
      }
      return outputs;
    });
  }

  [[noreturn]] static void fail(const std::string& text) { throw Error(std::string(kProgram) + ": " + text); }

  void check_input(const at::Tensor& input) const {
    const Signature& wanted = manifest_.input;
    const auto misfit = [&](const std::string& least, const std::string& got) {
      fail("expected " + wanted.name + " " + detail::word(wanted.shape) + least + ", got " + got + ".");
    };
    if (!input.defined()) misfit("", "no tensor");
    bool fits = input.dim() == 3;
    for (std::size_t i = 0; fits && i < 3; ++i) {
      fits = wanted.shape[i] == kFree || wanted.shape[i] == input.size(static_cast<std::int64_t>(i));
    }
    if (!fits) misfit("", detail::listed(input.sizes()));
    if (input.size(0) < manifest_.min_batch) {
      misfit(" with B >= " + std::to_string(manifest_.min_batch), detail::listed(input.sizes()));
    }
    if (input.size(1) < manifest_.min_tokens) {
      misfit(" with T >= " + std::to_string(manifest_.min_tokens), detail::listed(input.sizes()));
    }
    if (input.scalar_type() != dtype_) {
      fail("expected dtype " + wanted.dtype + ", got " + detail::dtype_name(input.scalar_type()) + ".");
    }
    if (!input.device().is_cpu()) fail("expected device cpu, got " + input.device().str() + ".");
    if (input.layout() != at::kStrided) fail("expected a dense tensor, got another layout.");
  }

  // A tensor, or a list of (gamma, beta). Tensors leave their containers, so that their counts say who else holds them.
  static std::vector<at::Tensor> flatten(c10::IValue result) {
    std::vector<at::Tensor> outputs;
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
    std::vector<std::string> wanted;
    std::vector<std::string> got;
    for (const Signature& output : manifest_.outputs) {
      wanted.push_back(output.dtype + " " + detail::listed(std::vector<std::int64_t>{batch, output.shape[1]}));
    }
    for (const at::Tensor& output : outputs) got.push_back(detail::signature(output));
    fail("expected outputs " + detail::listed(wanted) + ", got " + detail::listed(got) + ".");
  }

  // The one case that every loader runs: an archive that loads may still compute something else here.
  void check_golden(const Bundle& bundle) const {
    const std::string object = "bundle " + dir_ + ": " + kProgram;
    for (const GoldenCase& golden : manifest_.cases) {
      if (golden.name != "batch_1") continue;
      const double error = golden_error(bundle, golden, forward(golden_input(bundle, golden)));
      const double tolerance = golden_tolerance(*manifest_.program(kBackend), golden, manifest_);
      if (!(error <= tolerance)) {  // so that a NaN is never within
        throw Error(object + ": case 'batch_1': error " + detail::number(error) + " is above the tolerance " +
                    detail::number(tolerance) + ".");
      }
      return;
    }
    throw Error(object + ": case 'batch_1': not in the manifest.");
  }

  std::string dir_;
  bool follow_links_;
  Manifest manifest_;
  std::string digest_;
  at::ScalarType dtype_;
  std::unique_ptr<Shared> shared_;
};

}  // namespace regplug
