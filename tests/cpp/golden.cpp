// regplug_golden BUNDLE [--autocast]: runs every golden case, and inputs that must be rejected; with --autocast, while
// CPU autocast is on. Prints one JSON object.
#include <regplug/torchscript.h>

#include <ATen/ATen.h>
#include <ATen/FunctionalTensorWrapper.h>
#include <ATen/autocast_mode.h>
#include <ATen/functorch/BatchedTensorImpl.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

namespace golden {
namespace {

using Inputs = std::vector<regplug::NamedTensor>;

template <typename Given>
std::vector<at::Tensor> run_as(const regplug::TorchScriptBundle& program, const Given& inputs) {
  if (!program.manifest().is_conditioner()) return {program.run(inputs)};
  std::vector<at::Tensor> flat;
  for (const auto& [gamma, beta] : program.run_film(inputs)) flat.insert(flat.end(), {gamma, beta});
  return flat;
}

// One input without its name, several by name.
std::vector<at::Tensor> run_flat(const regplug::TorchScriptBundle& program, const Inputs& inputs) {
  if (inputs.size() == 1) return run_as(program, inputs[0].tensor);
  if (inputs.size() != 2 || program.manifest().is_conditioner()) return run_as(program, inputs);
  return {program.run({{inputs[0].name, inputs[0].tensor}, {inputs[1].name, inputs[1].tensor}})};
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

// The message that rejects the inputs; empty when they are accepted.
std::string refusal(const regplug::TorchScriptBundle& program, const Inputs& inputs) {
  return message_of([&] { run_flat(program, inputs); });
}

Inputs with(Inputs inputs, std::size_t i, const at::Tensor& other) {
  inputs[i].tensor = other;
  return inputs;
}

// Names, and further inputs, that must be rejected; `inputs` are right.
void refuse_more_inputs(const regplug::TorchScriptBundle& program, const Inputs& inputs, regplug::Json& report) {
  const auto named = [&](const std::string& what, const Inputs& given) {
    report["names"][what] = message_of([&] { run_as(program, given); });
  };
  Inputs twice = inputs;
  twice.push_back(inputs.front());
  Inputs unknown = inputs;
  unknown.back().name = "other\n";
  named("few", Inputs(inputs.begin(), inputs.end() - 1));
  named("twice", twice);
  named("unknown", unknown);
  report["names"]["none"] = message_of([&] { run_as(program, inputs[0].tensor); });  // right if it is the only one
  report["names"]["all"] = message_of([&] { run_as(program, inputs); });
  for (std::size_t i = 1; i < inputs.size(); ++i) {
    const at::Tensor& good = inputs[i].tensor;
    regplug::Json& refused = report["more"][std::string(inputs[i].name)];
    refused["width"] = refusal(program, with(inputs, i, at::cat({good, good.narrow(1, 0, 1)}, 1)));
    refused["batch"] = refusal(program, with(inputs, i, good.narrow(0, 0, 1)));
    refused["rank"] = refusal(program, with(inputs, i, good.select(1, 0)));
    refused["dtype"] = refusal(program, with(inputs, i, good.to(at::kByte)));
    refused["nothing"] = refusal(program, with(inputs, i, at::Tensor()));
    refused["meta"] = refusal(program, with(inputs, i, good.to(at::kMeta)));
    refused["sparse"] = refusal(program, with(inputs, i, good.to_sparse()));
    if (good.scalar_type() != at::kBool) continue;
    const at::Tensor bytes = at::ones(good.sizes(), at::kByte);
    const at::Tensor mask = bytes.view(at::kBool);
    bytes[1][-1].fill_(255);
    refused["byte"] = refusal(program, with(inputs, i, mask));
    bytes[1].fill_(0);
    refused["false"] = refusal(program, with(inputs, i, mask));
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
    Inputs inputs;
    for (const auto& [name, view] : regplug::golden_inputs(bundle, golden)) {
      inputs.push_back({name, regplug::to_tensor(view)});
    }
    const std::vector<at::Tensor> outputs = run_flat(program, inputs);
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
    std::reverse(inputs.begin(), inputs.end());  // their order does not matter
    const std::vector<at::Tensor> again = run_flat(program, inputs);
    bool owned = true;
    for (std::size_t i = 0; i < kept.size(); ++i) owned = owned && again[i].allclose(kept[i]);
    const bool ok = error <= tolerance && owned && (!golden.start || !inputs.back().tensor.is_contiguous());
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
  Inputs inputs{{manifest.input.name, good}};
  for (const regplug::TensorSpec& wanted : manifest.more_inputs) {
    const std::int64_t second = wanted.shape[1] == regplug::kFree ? shape[1] : wanted.shape[1];
    inputs.push_back({wanted.name, at::ones({2, second}, regplug::detail::to_dtype(wanted.dtype))});
  }
  for (const auto& [what, input] : bad) {
    report["refused"][what] = refusal(program, with(inputs, 0, input));
    all = all && !refusal(program, with(inputs, 0, input)).empty();
  }
  Inputs empty = inputs;
  for (regplug::NamedTensor& one : empty) one.tensor = one.tensor.narrow(0, 0, 0);
  if (manifest.min_batch > 0) report["refused"]["B"] = refusal(program, empty);
  all = all && refusal(program, empty).empty() == (manifest.min_batch == 0);
  all = all && refusal(program, inputs).empty();
  refuse_more_inputs(program, inputs, report);
  if (!manifest.is_conditioner() && good.scalar_type() == at::kFloat && inputs.size() == 1) {
    all = check_odd(program, good, report) && all;
    check_conversions(dir, report);
  }
  try {
    if (manifest.is_conditioner()) {
      program.run(inputs);
    } else {
      program.run_film(inputs);
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
