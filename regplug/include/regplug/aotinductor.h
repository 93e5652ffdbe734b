// Opens a bundle and runs its AOTInductor program. A program is code from whoever made the bundle: opening this class
// is agreeing to run it; pin the digest to run none but the one you know. Needs libtorch to link and no torch header.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "regplug/bundle.h"
#include "regplug/detail/aten_handle.h"
#include "regplug/detail/model_library.h"
#include "regplug/detail/program_checks.h"
#include "regplug/detail/translate_errors.h"
#include "regplug/detail/weights.h"
#include "regplug/detail/weights_in_place.h"
#include "regplug/error.h"
#include "regplug/golden.h"
#include "regplug/manifest.h"
#include "regplug/tensor.h"

namespace regplug {

// Movable. Any number of threads may run it, while another reloads its weights.
class AOTInductorBundle {
 public:
  // Checks the whole folder, picks the program that suits this CPU best, loads it and the weights, and compares one
  // golden case. Throws Error. `pin` is the digest the bundle must have; empty: any.
  static AOTInductorBundle open(const std::string& dir, const std::string& pin = "") {
    Options options;
    options.pin = pin;
    return open(dir, options);
  }

  static AOTInductorBundle open(const std::string& dir, const Options& options) {
    const Bundle bundle = Bundle::open(dir, options, kBackend);
    AOTInductorBundle opened(dir, options, bundle);
    const std::string object = "bundle " + dir + ": " + kProgram;
    detail::as_error(object, [&] {
      detail::check_golden(object, bundle, [&](const TensorView& input) { return opened.forward(input); });
    });
    return opened;
  }

  // registers [B, R, D], or images with a backbone inside -> conditioning [B, cond_dim]. Thread-safe. The result owns
  // its memory. Throws Error when the input does not fit, or the program fails.
  Tensor run(const TensorView& input) const {
    if (!shared_) detail::refuse_moved_from();
    if (manifest().is_conditioner()) throw Error("bundle " + dir_ + ": holds a conditioner; use run_film.");
    Tensor conditioning;
    forward(input, &conditioning);
    return conditioning;
  }

  // tokens [B, T, D], or images -> (gamma, beta), each [B, width], for every FiLM layer in order. As `run` in all else.
  std::vector<std::pair<Tensor, Tensor>> run_film(const TensorView& input) const {
    if (!shared_) detail::refuse_moved_from();
    if (!manifest().is_conditioner()) throw Error("bundle " + dir_ + ": holds a readout; use run.");
    std::vector<Tensor> flat = forward(input);
    std::vector<std::pair<Tensor, Tensor>> pairs;
    pairs.reserve(flat.size() / 2);
    for (std::size_t i = 0; i + 1 < flat.size(); i += 2) pairs.emplace_back(std::move(flat[i]), std::move(flat[i + 1]));
    return pairs;
  }

  std::int64_t cond_dim() const { return manifest_.cond_dim; }
  const Manifest& manifest() const { return manifest_; }
  const std::string& digest() const { return digest_; }
  const std::string& isa() const { return isa_; }  // the instruction set of the program that was picked

  // Takes the weights of a lone safetensors file that fits; calls of `run` under way end with the old ones.
  // Throws Error, and keeps the old weights, when it does not fit.
  void reload_weights(const std::string& file) {
    if (!shared_) detail::refuse_moved_from();
    auto held = detail::reported("weights " + file, [&] {
      return std::make_shared<const detail::HeldWeights>(
          detail::read_weights(file, follow_links_, wanted_, manifest_));
    });
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->weights = std::move(held);
  }

 private:
  static constexpr const char* kBackend = "aotinductor";
  static constexpr const char* kProgram = "program 'aotinductor'";
  static constexpr std::size_t kInPlace = 64;  // handles of a call; a readout has a handful

  struct Shared {
    std::mutex mutex;
    std::shared_ptr<const detail::HeldWeights> weights;  // never changed once others can see them
  };

  AOTInductorBundle(const std::string& dir, const Options& options, const Bundle& bundle)
      : dir_(dir),
        follow_links_(options.follow_links),
        manifest_(bundle.manifest()),
        digest_(bundle.digest()),
        dtype_(dtype_named(manifest_.input.dtype)),
        shared_(std::make_unique<Shared>()) {
    const std::string label = "bundle " + dir + ": ";
    const Program& program = bundle.program();
    const std::string file = label + program.file;
    const auto isa = program.properties.find("isa");
    if (isa != program.properties.end()) isa_ = isa->second;
    detail::reported(file, [&] {
      wanted_ = detail::wanted_weights(file, program);
      detail::check_weights(wanted_, bundle.weights(), label + "weights.safetensors");
      library_ = load(bundle);
      if (library_->num_inputs() != wanted_.size() + 1 || library_->num_outputs() != manifest_.outputs.size()) {
        throw detail::Fault("expected " + counted(wanted_.size() + 1, manifest_.outputs.size()) + ", got " +
                               counted(library_->num_inputs(), library_->num_outputs()) + ".");
      }
      shared_->weights = std::make_shared<const detail::HeldWeights>(bundle.weights());
    });
  }

  static detail::ModelLibrary::Use load(const Bundle& bundle) {
    const Manifest& manifest = bundle.manifest();
    try {
      return detail::ModelLibrary::load(bundle.program_bytes().view(),
                                        manifest.files.at(bundle.program().file).sha256);
    } catch (const detail::NoRoom& error) {
      throw detail::Fault(std::string(error.what()) + ".");
    } catch (const detail::Fault& error) {
      throw detail::Fault(std::string(error.what()) + "; made with torch " + manifest.provenance.torch + ".");
    }
  }

  static std::string counted(std::size_t inputs, std::size_t outputs) {
    return "inputs " + std::to_string(inputs) + " and outputs " + std::to_string(outputs);
  }

  std::shared_ptr<const detail::HeldWeights> current() const {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    return shared_->weights;
  }

  std::vector<Tensor> forward(const TensorView& input) const {
    std::vector<Tensor> outputs(manifest_.outputs.size());
    forward(input, outputs.data());
    return outputs;
  }

  // Fills as many outputs as the manifest lists.
  void forward(const TensorView& input, Tensor* outputs) const {
    detail::reported(kProgram, [&] {
      check_input(input);
      if (input.sizes()[0] == 0) return no_samples(outputs);
      // A library compiled for contiguous memory reads a strided view as if it were contiguous, without a word.
      const bool as_it_is = input.is_contiguous() && input.is_aligned();
      const Tensor copied = as_it_is ? Tensor() : Tensor::copy_of(input);
      const TensorView& given = as_it_is ? input : copied.view();
      const std::shared_ptr<const detail::HeldWeights> weights = current();
      const std::size_t count = library_->num_outputs();
      detail::Handles<kInPlace> inputs(1 + weights->tensors().size());
      detail::Handles<kInPlace> results(count);
      inputs[0] = detail::to_aten(given).release();
      for (std::size_t i = 0; i < weights->tensors().size(); ++i) {
        inputs[i + 1] = detail::another_handle(weights->tensors()[i]).release();  // the run takes each over
      }
      // Grad mode needs no guard: the library calls CPU kernels below autograd, and none of its tensors wants a grad.
      AtenTensorHandle* const stolen = inputs.release();
      library_->run(stolen, results.data());
      const detail::Block memory{given.data(), given.data() + given.nbytes()};
      for (std::size_t i = 0; i < count; ++i) {
        const detail::AtenShown shown = detail::shown_of(results[i]);
        if (!fits(shown, given.sizes()[0], i)) refuse_outputs(results, given.sizes()[0]);
        // A module may return its input, a weight, a constant, or views of one tensor: whoever calls gets memory of
        // his own.
        const bool shared = count > 1 || library_->num_constants() != 0 || !shown.view.is_contiguous() ||
                            shown.storage.overlaps(memory) || weights->overlaps(shown.storage);
        outputs[i] = shared ? Tensor::copy_of(shown.view)
                            : Tensor(shown.view.dtype(), shown.view.sizes(), shown.view.data(), results.share(i));
      }
    });
  }

  // No program is asked for nothing: attention divides by the batch, which ends the process.
  void no_samples(Tensor* outputs) const {
    for (std::size_t i = 0; i < manifest_.outputs.size(); ++i) {
      outputs[i] = Tensor::copy_of(TensorView(dtype_, nullptr, {0, manifest_.outputs[i].shape[1]}));
    }
  }

  void check_input(const TensorView& input) const {
    if (!input.defined()) detail::refuse_input(kProgram, manifest_.input, "", "no tensor");
    detail::check_shape(kProgram, manifest_, input.sizes().data(), input.sizes().size());
    if (input.dtype() != dtype_) detail::refuse_dtype(kProgram, manifest_, dtype_name(input.dtype()));
  }

  bool fits(const detail::AtenShown& shown, std::int64_t batch, std::size_t i) const {
    const Sizes& sizes = shown.view.sizes();
    return shown.ours && shown.view.dtype() == dtype_ && sizes.size() == 2 && sizes[0] == batch &&
           sizes[1] == manifest_.outputs[i].shape[1];
  }

  [[noreturn]] void refuse_outputs(const detail::Handles<kInPlace>& results, std::int64_t batch) const {
    std::vector<std::string> got;
    for (std::size_t i = 0; i < library_->num_outputs(); ++i) {
      const detail::AtenShown shown = detail::shown_of(results[i]);
      got.push_back(shown.ours ? shown.view.signature() : "a tensor of another device, layout or dtype");
    }
    detail::refuse_outputs(kProgram, manifest_, batch, got);
  }

  std::string dir_;
  bool follow_links_;
  Manifest manifest_;
  std::string digest_;
  std::string isa_;
  Dtype dtype_;
  detail::WeightSignatures wanted_;
  detail::ModelLibrary::Use library_;
  std::unique_ptr<Shared> shared_;
};

}  // namespace regplug
