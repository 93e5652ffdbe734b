// Opens a bundle and runs its AOTInductor program. A program is the bundle author's code, and opening this class agrees
// to run it; pin the digest to run only the program you know. Linking needs libtorch, compiling needs no torch header.
#pragma once

#include <array>
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
#include "regplug/inputs.h"
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
      const auto run = [&](const std::vector<NamedView>& inputs) { return opened.forward(inputs); };
      detail::check_golden(object, bundle, run);
    });
    return opened;
  }

  // registers or tokens [B, R, D], or images with a backbone inside -> conditioning [B, cond_dim]. Thread-safe. The
  // result owns its memory. Throws Error when the input does not fit, or the program fails.
  Tensor run(const TensorView& input) const {
    check_readout();
    Tensor conditioning;
    forward(input, &conditioning);
    return conditioning;
  }

  // All inputs by name, in any order: run({{"tokens", tokens}, {"mask", mask}}).
  Tensor run(const std::vector<NamedView>& inputs) const {
    check_readout();
    return std::move(forward(inputs).front());
  }

  // tokens [B, T, D], or images -> (gamma, beta), each [B, width], for every FiLM layer in order. Otherwise as `run`.
  std::vector<std::pair<Tensor, Tensor>> run_film(const TensorView& input) const {
    check_conditioner();
    std::vector<Tensor> outputs(manifest_.outputs.size());
    forward(input, outputs.data());
    return pairs_of(std::move(outputs));
  }

  std::vector<std::pair<Tensor, Tensor>> run_film(const std::vector<NamedView>& inputs) const {
    check_conditioner();
    return pairs_of(forward(inputs));
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
      const std::size_t inputs = manifest_.num_inputs() + expected_.size();
      if (library_->num_inputs() != inputs || library_->num_outputs() != manifest_.outputs.size()) {
        throw detail::Fault("expected " + counts(inputs, manifest_.outputs.size()) + ", got " +
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

  std::vector<Tensor> forward(const std::vector<NamedView>& inputs) const {
    std::vector<Tensor> outputs(manifest_.outputs.size());
    detail::translate_errors(kProgram, [&] {
      const auto ordered = detail::in_order(kProgram, manifest_, inputs.data(), inputs.size());
      compute([&](std::size_t i) -> const TensorView& { return ordered[i]->view; }, outputs.data());
    });
    return outputs;
  }

  // Fills as many outputs as the manifest lists.
  void forward(const TensorView& input, Tensor* outputs) const {
    detail::translate_errors(kProgram, [&] {
      detail::check_single(kProgram, manifest_);
      compute([&](std::size_t) -> const TensorView& { return input; }, outputs);
    });
  }

  // `input_at(i)` gives the inputs in the manifest's order.
  template <typename InputAt>
  void compute(InputAt input_at, Tensor* outputs) const {
    const Sizes& sizes = input_at(0).sizes();
    const std::size_t given = manifest_.num_inputs();
    check_input(input_at(0));
    for (std::size_t i = 1; i < given; ++i) check_more_input(i, input_at(i), sizes);
    if (manifest_.has_mask()) check_mask(input_at(1));
    if (sizes[0] == 0) return fill_empty(outputs);
    const std::shared_ptr<const detail::WeightsInPlace> current = weights();
    const std::size_t count = library_->num_outputs();
    detail::Handles<kInPlace> inputs(given + current->tensors().size());
    detail::Handles<kInPlace> results(count);
    std::array<detail::Block, detail::kMaxInputs> memory;
    const auto give = [&](std::size_t i, const TensorView& view) {
      inputs[i] = detail::to_aten(view).release();
      memory[i] = {view.data(), view.data() + view.nbytes()};
    };
    const Tensor copied = copy_if_needed(input_at(0));
    give(0, copied.data() == nullptr ? input_at(0) : copied.view());
    std::vector<Tensor> copies;
    for (std::size_t i = 1; i < given; ++i) {
      copies.push_back(copy_if_needed(input_at(i)));
      give(i, copies.back().data() == nullptr ? input_at(i) : copies.back().view());
    }
    for (std::size_t i = 0; i < current->tensors().size(); ++i) {
      inputs[given + i] = detail::new_handle(current->tensors()[i]).release();
    }
    // Grad mode needs no guard: the library calls CPU kernels below autograd, and none of its tensors wants a grad.
    AtenTensorHandle* const stolen = inputs.release();
    library_->run(stolen, results.data());
    for (std::size_t i = 0; i < count; ++i) {
      const detail::AtenTensorInfo result = detail::inspect(results[i]);
      if (!fits(result, sizes[0], i)) reject_outputs(results, sizes[0]);
      // A module may return an input, a weight, a constant, or views of one tensor: the caller gets its own copy.
      bool shared = count > 1 || library_->num_constants() != 0 || !result.view.is_contiguous();
      for (std::size_t j = 0; j < given; ++j) shared = shared || result.storage.overlaps(memory[j]);
      shared = shared || current->overlaps(result.storage);
      outputs[i] = shared ? Tensor::copy_of(result.view)
                          : Tensor(result.view.dtype(), result.view.sizes(), result.view.data(), results.share(i));
    }
  }

  // A library compiled for contiguous memory silently reads a strided view as if it were contiguous.
  static Tensor copy_if_needed(const TensorView& view) {
    return view.is_contiguous() && view.is_aligned() ? Tensor() : Tensor::copy_of(view);
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
    if (input.dtype() != dtype_) detail::reject_dtype(kProgram, manifest_, 0, dtype_name(input.dtype()));
  }

  // `first` are the sizes of the first input.
  void check_more_input(std::size_t i, const TensorView& input, const Sizes& first) const {
    const TensorSpec& wanted = manifest_.input_at(i);
    if (!input.defined()) detail::reject_more_input(kProgram, wanted, first.data(), "no tensor");
    detail::check_more_shape(kProgram, wanted, first.data(), input.sizes().data(), input.sizes().size());
    const bool is_mask = i == 1 && manifest_.has_mask();
    if (input.dtype() == (is_mask ? Dtype::boolean : dtype_)) return;
    detail::reject_dtype(kProgram, manifest_, i, dtype_name(input.dtype()));
  }

  void check_mask(const TensorView& mask) const {
    detail::check_mask(kProgram, manifest_, {mask.data(), mask.sizes().data(), mask.strides().data()});
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
