// regplug_golden BUNDLE [--autocast]: runs every golden case, and inputs that must be rejected; with --autocast, while
// CPU autocast is on. Prints one JSON object.
#include <regplug/torchscript.h>

#include <ATen/ATen.h>
#include <ATen/FunctionalTensorWrapper.h>
#include <ATen/autocast_mode.h>
#include <ATen/functorch/BatchedTensorImpl.h>
#include <c10/core/InferenceMode.h>

#include <cstdint>
#include <exception>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

namespace golden {
namespace {

std::vector<at::Tensor> run_flat(const regplug::TorchScriptBundle& program, const at::Tensor& input) {
  if (!program.manifest().is_conditioner()) return {program.run(input)};
  std::vector<at::Tensor> flat;
  for (const auto& [gamma, beta] : program.run_film(input)) flat.insert(flat.end(), {gamma, beta});
  return flat;
}

// The message that rejects the input; empty when it is accepted.
std::string refusal(const regplug::TorchScriptBundle& program, const at::Tensor& input) {
  try {
    run_flat(program, input);
    return "";
  } catch (const regplug::Error& error) {
    return error.what();
  }
}

template <typename Call>
std::string message_of(Call call) {
  try {
    call();
    return "";
  } catch (const regplug::Error& error) {
    return error.what();
  }
}

// Tensors without plain memory, with the shape and dtype of `good`. Reports the messages of view_of and of run; where
// run accepts one, its outputs must be those of the plain tensor.
bool check_odd(const regplug::TorchScriptBundle& program, const at::Tensor& good, regplug::Json& report) {
  const at::Tensor drawn = at::randn(good.sizes(), good.options());
  const at::Tensor zeros = at::zeros(good.sizes(), good.options());
  struct Odd {
    const char* name;
    at::Tensor tensor;
    at::Tensor plain;
  };
  const std::vector<Odd> all_odd{
      {"negated", at::_neg_view(drawn), drawn.neg()},
      {"imaginary", at::imag(at::conj(at::complex(zeros, drawn))), drawn.neg()},
      {"undefined", at::Tensor(), zeros},
      {"sparse", drawn.to_sparse(), drawn},
      {"mkldnn", drawn.to_mkldnn(), drawn},
      {"meta", drawn.to(at::kMeta), drawn},
      {"zeros", at::_efficientzerotensor(good.sizes(), good.options()), zeros},
      {"quantized", at::quantize_per_tensor(zeros, 0.1, 0, at::kQInt8), zeros},
      {"nested", at::_nested_tensor_from_mask(drawn.flatten(2), at::ones({good.size(0), good.size(1)}, at::kBool)),
       drawn},
      {"batched", at::functorch::makeBatched(at::stack({drawn, drawn}), 0, 1), drawn},
      {"functional", at::functionalization::impl::to_functional_tensor(drawn), drawn},
      {"complex", at::complex(drawn, zeros).conj(), drawn},
  };
  bool all = true;
  for (const Odd& odd : all_odd) {
    at::Tensor got;
    report["view_of"][odd.name] = message_of([&] { regplug::view_of(odd.tensor); });
    report["run"][odd.name] = message_of([&] { got = program.run(odd.tensor); });
    all = all && (!got.defined() || got.allclose(program.run(odd.plain)));
  }
  // these have plain memory
  const at::Tensor part = at::zeros({good.size(0), good.size(1), good.size(2) + 3}).narrow(2, 2, good.size(2));
  all = all && message_of([&] { regplug::view_of(part.requires_grad_()); }).empty();
  const c10::InferenceMode inference;
  return all && message_of([&] { regplug::view_of(at::zeros({2})); }).empty();
}

void check_conversions(const std::string& dir, regplug::Json& report) {
  using regplug::TensorView;
  const std::vector<float> numbers(4);
  const TensorView backward(regplug::Dtype::float32, numbers.data() + 3, {4}, {-1});
  const TensorView far(regplug::Dtype::float32, numbers.data(), {2, 1}, {std::int64_t{1} << 58, 1});
  report["to_tensor"]["nothing"] = message_of([] { regplug::to_tensor(TensorView()); });
  report["to_tensor"]["backward"] = message_of([&] { regplug::to_tensor(backward); });
  report["to_tensor"]["far"] = message_of([&] { regplug::to_tensor(far); });
  report["to_tensor"]["short"] = message_of([] { regplug::to_tensor(regplug::TensorBytes{"float32", {4}, "1234"}); });
  auto first = regplug::TorchScriptBundle::open(dir);
  const auto second = std::move(first);
  report["moved_from"] = {message_of([&] {
                            first.run(at::zeros({1, 4, 24}));
                          }),
                          message_of([&] {
                            first.run_film(at::zeros({1, 4, 24}));
                          }),
                          message_of([&] { first.reload_weights(dir + "/weights.safetensors"); })};
}

bool check(const std::string& dir, regplug::Json& report) {
  const regplug::Bundle bundle = regplug::Bundle::open(dir, {}, "torchscript");
  const regplug::TorchScriptBundle program = regplug::TorchScriptBundle::open(dir, bundle.digest());
  const regplug::Manifest& manifest = program.manifest();
  const regplug::ProgramRecord& record = bundle.program();
  bool all = true;
  for (const regplug::GoldenCase& golden : manifest.cases) {
    const at::Tensor input = regplug::to_tensor(regplug::golden_input(bundle, golden));
    const std::vector<at::Tensor> outputs = run_flat(program, input);
    std::vector<regplug::TensorView> views;
    for (const at::Tensor& output : outputs) views.push_back(regplug::view_of(output));
    const double error = regplug::golden_error(bundle, golden, views);
    const double tolerance = regplug::golden_tolerance(record, golden, manifest);
    // Outputs share no memory with an input, a weight or a later output.
    std::vector<at::Tensor> kept;
    for (const at::Tensor& output : outputs) kept.push_back(output.clone());
    {
      const c10::InferenceMode inference;
      for (at::Tensor output : outputs) output.fill_(7);
    }
    const std::vector<at::Tensor> again = run_flat(program, input);
    bool owned = true;
    for (std::size_t i = 0; i < kept.size(); ++i) owned = owned && again[i].allclose(kept[i]);
    const bool ok = error <= tolerance && owned && (!golden.start || !input.is_contiguous());
    report["cases"][golden.name] = {{"error", error}, {"tolerance", tolerance}, {"ok", ok}};
    all = all && ok;
  }
  std::vector<std::int64_t> shape = manifest.input.shape;
  shape[0] = 2;
  if (shape[1] == regplug::kFree) shape[1] = manifest.min_tokens;
  const at::Tensor good = at::zeros(shape, regplug::to_tensor(bundle.golden().at("batch_1.input")).options());
  const at::Tensor one_less = good.narrow(1, 0, shape[1] - 1);
  const std::string middle = manifest.backbone ? "C" : manifest.is_conditioner() ? "T" : "R";
  const std::vector<std::pair<std::string, at::Tensor>> bad{
      {middle, one_less},
      {manifest.backbone ? "H" : "D", at::cat({good, good}, 2)},
      {"rank", good[0]},
      {"dtype", good.to(good.scalar_type() == at::kDouble ? at::kFloat : at::kDouble)},
      {"nothing", at::Tensor()}};
  for (const auto& [what, input] : bad) {
    report["refused"][what] = refusal(program, input);
    all = all && !refusal(program, input).empty();
  }
  if (manifest.min_batch > 0) {
    report["refused"]["B"] = refusal(program, good.narrow(0, 0, 0));
    all = all && !refusal(program, good.narrow(0, 0, 0)).empty();
  }
  all = all && refusal(program, good).empty();
  if (!manifest.is_conditioner() && good.scalar_type() == at::kFloat) {
    all = check_odd(program, good, report) && all;
    check_conversions(dir, report);
  }
  try {
    if (manifest.is_conditioner()) {
      program.run(good);
    } else {
      program.run_film(good);
    }
    all = false;
  } catch (const regplug::Error& error) {
    report["refused"]["call"] = error.what();
  }
  report["cond_dim"] = program.cond_dim();
  report["digest"] = program.digest();
  return all;
}

}  // namespace

inline int main_of(int argc, char** argv) {
  const bool autocast = argc == 3 && std::string(argv[2]) == "--autocast";
  if (argc != 2 && !autocast) {
    std::cerr << "usage: regplug_golden BUNDLE [--autocast]\n";
    return 2;
  }
  if (autocast) at::autocast::set_autocast_enabled(at::kCPU, true);
  regplug::Json report;
  try {
    report["ok"] = check(argv[1], report);
    report["autocast"] = at::autocast::is_autocast_enabled(at::kCPU);
  } catch (const std::exception& error) {
    report["ok"] = false;
    report["error"] = error.what();
  }
  std::cout << report.dump() << "\n";
  return report["ok"] == true ? 0 : 1;
}

}  // namespace golden
