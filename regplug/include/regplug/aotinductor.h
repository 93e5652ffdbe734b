// Opens a bundle and runs its AOTInductor program. A program is the bundle author's code, and opening this class agrees
// to run it; pin the digest to run only the program you know. Linking needs libtorch, compiling needs no torch header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "regplug/bundle.h"
#include "regplug/detail/aten_handle.h"
#include "regplug/detail/model_library.h"
#include "regplug/detail/program_bundle.h"
#include "regplug/detail/program_checks.h"
#include "regplug/detail/translate_errors.h"
#include "regplug/detail/weights.h"
#include "regplug/detail/weights_in_place.h"
#include "regplug/dtype.h"
#include "regplug/error.h"
#include "regplug/golden.h"
#include "regplug/manifest.h"
#include "regplug/tensor.h"

namespace regplug {
REGPLUG_SHIM_BEGIN

// Movable. Any number of threads may run it, while another reloads its weights.
class AOTInductorBundle : public detail::ProgramBundle<Tensor, detail::WeightsInPlace> {
 public:
  // Checks the whole folder, picks the best program for this CPU, loads it and the weights, and compares one golden
  // case. Throws Error. `pin` is the digest the bundle must have; empty: any.
  static AOTInductorBundle open(const std::string& dir, const std::string& pin = "") { return open(dir, pinned(pin)); }

  static AOTInductorBundle open(const std::string& dir, const Options& options) {
    const Bundle bundle = Bundle::open(dir, options, kBackend);
    AOTInductorBundle opened(dir, options, bundle);
    const std::string object = "bundle " + dir + ": " + kProgram;
    detail::translate_errors(object, [&] {
      detail::check_golden(object, bundle, [&](const TensorView& input) { return opened.forward(input); });
    });
    return opened;
  }

  // registers [B, R, D], or images with a backbone inside -> conditioning [B, cond_dim]. Thread-safe. The result owns
  // its memory. Throws Error when the input does not fit, or the program fails.
  Tensor run(const TensorView& input) const {
    check_readout();
    Tensor conditioning;
    forward(input, &conditioning);
    return conditioning;
  }

  // tokens [B, T, D], or images -> (gamma, beta), each [B, width], for every FiLM layer in order. Otherwise as `run`.
  std::vector<std::pair<Tensor, Tensor>> run_film(const TensorView& input) const {
    check_conditioner();
    return pairs_of(forward(input));
  }

  const std::string& isa() const { return isa_; }  // the instruction set of the program that was picked

  // Loads the weights of a safetensors file; calls of `run` that are under way end with the old ones.
  // Throws Error, and keeps the old weights, when they do not fit.
  void reload_weights(const std::string& file) {
    check_open();
    set_weights(detail::translate_errors("weights " + file, [&] {
      return std::make_shared<const detail::WeightsInPlace>(
          detail::read_weights(file, follow_links_, expected_, manifest_));
    }));
  }

 private:
  static constexpr const char* kBackend = "aotinductor";
  static constexpr const char* kProgram = "program 'aotinductor'";
  static constexpr std::size_t kInPlace = 64;  // handles of a call; a readout has a handful

  AOTInductorBundle(const std::string& dir, const Options& options, const Bundle& bundle)
      : ProgramBundle(dir, options, bundle), dtype_(dtype_named(manifest_.input.dtype)) {
    const std::string label = "bundle " + dir + ": ";
    const ProgramRecord& program = bundle.program();
    const std::string file = label + program.file;
    const auto isa = program.properties.find("isa");
    if (isa != program.properties.end()) isa_ = isa->second;
    detail::translate_errors(file, [&] {
      expected_ = detail::expected_weights(file, program);
      detail::check_weights(expected_, bundle.weights(), label + "weights.safetensors");
      library_ = load(bundle);
      if (library_->num_inputs() != expected_.size() + 1 || library_->num_outputs() != manifest_.outputs.size()) {
        throw detail::Fault("expected " + counts(expected_.size() + 1, manifest_.outputs.size()) + ", got " +
                            counts(library_->num_inputs(), library_->num_outputs()) + ".");
      }
      set_weights(std::make_shared<const detail::WeightsInPlace>(bundle.weights()));
    });
  }

  static detail::ModelLibrary::Use load(const Bundle& bundle) {
    const Manifest& manifest = bundle.manifest();
    try {
      return detail::ModelLibrary::load(bundle.program_bytes().view(), manifest.files.at(bundle.program().file).sha256);
    } catch (const detail::OutOfSpace& error) {
      throw detail::Fault(std::string(error.what()) + ".");
    } catch (const detail::Fault& error) {
      throw detail::Fault(std::string(error.what()) + "; made with torch " + manifest.provenance.torch + ".");
    }
  }

  static std::string counts(std::size_t inputs, std::size_t outputs) {
    return "inputs " + std::to_string(inputs) + " and outputs " + std::to_string(outputs);
  }

  std::vector<Tensor> forward(const TensorView& input) const {
    std::vector<Tensor> outputs(manifest_.outputs.size());
    forward(input, outputs.data());
    return outputs;
  }

  // Fills as many outputs as the manifest lists.
  void forward(const TensorView& input, Tensor* outputs) const {
    detail::translate_errors(kProgram, [&] {
      check_input(input);
      if (input.sizes()[0] == 0) return fill_empty(outputs);
      // A library compiled for contiguous memory silently reads a strided view as if it were contiguous.
      const bool as_it_is = input.is_contiguous() && input.is_aligned();
      const Tensor copied = as_it_is ? Tensor() : Tensor::copy_of(input);
      const TensorView& given = as_it_is ? input : copied.view();
      const std::shared_ptr<const detail::WeightsInPlace> current = weights();
      const std::size_t count = library_->num_outputs();
      detail::Handles<kInPlace> inputs(1 + current->tensors().size());
      detail::Handles<kInPlace> results(count);
      inputs[0] = detail::to_aten(given).release();
      for (std::size_t i = 0; i < current->tensors().size(); ++i) {
        inputs[i + 1] = detail::new_handle(current->tensors()[i]).release();
      }
      // Grad mode needs no guard: the library calls CPU kernels below autograd, and none of its tensors wants a grad.
      AtenTensorHandle* const stolen = inputs.release();
      library_->run(stolen, results.data());
      const detail::Block memory{given.data(), given.data() + given.nbytes()};
      for (std::size_t i = 0; i < count; ++i) {
        const detail::AtenTensorInfo result = detail::inspect(results[i]);
        if (!fits(result, given.sizes()[0], i)) reject_outputs(results, given.sizes()[0]);
        // A module may return its input, a weight, a constant, or views of one tensor: the caller gets its own copy.
        const bool shared = count > 1 || library_->num_constants() != 0 || !result.view.is_contiguous() ||
                            result.storage.overlaps(memory) || current->overlaps(result.storage);
        outputs[i] = shared ? Tensor::copy_of(result.view)
                            : Tensor(result.view.dtype(), result.view.sizes(), result.view.data(), results.share(i));
      }
    });
  }

  // No program runs on an empty batch: attention divides by the batch size, which ends the process.
  void fill_empty(Tensor* outputs) const {
    for (std::size_t i = 0; i < manifest_.outputs.size(); ++i) {
      outputs[i] = Tensor::copy_of(TensorView(dtype_, nullptr, {0, manifest_.outputs[i].shape[1]}));
    }
  }

  void check_input(const TensorView& input) const {
    if (!input.defined()) detail::reject_input(kProgram, manifest_.input, "", "no tensor");
    detail::check_shape(kProgram, manifest_, input.sizes().data(), input.sizes().size());
    if (input.dtype() != dtype_) detail::reject_dtype(kProgram, manifest_, dtype_name(input.dtype()));
  }

  bool fits(const detail::AtenTensorInfo& result, std::int64_t batch, std::size_t i) const {
    const Sizes& sizes = result.view.sizes();
    return result.supported && result.view.dtype() == dtype_ && sizes.size() == 2 && sizes[0] == batch &&
           sizes[1] == manifest_.outputs[i].shape[1];
  }

  [[noreturn]] void reject_outputs(const detail::Handles<kInPlace>& results, std::int64_t batch) const {
    std::vector<std::string> got;
    for (std::size_t i = 0; i < library_->num_outputs(); ++i) {
      const detail::AtenTensorInfo result = detail::inspect(results[i]);
      got.push_back(result.supported ? result.view.signature() : "a tensor of another device, layout or dtype");
    }
    detail::reject_outputs(kProgram, manifest_, batch, got);
  }

  std::string isa_;
  Dtype dtype_;
  detail::WeightSpecs expected_;
  detail::ModelLibrary::Use library_;
};

REGPLUG_SHIM_END
}  // namespace regplug
