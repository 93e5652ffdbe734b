// regplug_aoti_golden BUNDLE [OTHER | --global LIBRARY]: runs every golden case of BUNDLE, and inputs that must be
// rejected. Before that it opens and closes OTHER, a bundle with other code, or loads LIBRARY into the global scope.
// Prints one JSON object.
#include <regplug/aotinductor.h>

#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

namespace aoti_golden {
namespace {

using regplug::Tensor;
using regplug::TensorView;

using Inputs = std::vector<regplug::NamedView>;

template <typename Given>
std::vector<Tensor> run_as(const regplug::AOTInductorBundle& program, const Given& inputs) {
  if (!program.manifest().is_conditioner()) return {program.run(inputs)};
  std::vector<Tensor> flat;
  for (const auto& [gamma, beta] : program.run_film(inputs)) flat.insert(flat.end(), {gamma, beta});
  return flat;
}

// One input without its name, several by name.
std::vector<Tensor> run_flat(const regplug::AOTInductorBundle& program, const Inputs& inputs) {
  if (inputs.size() == 1) return run_as(program, inputs[0].view);
  if (inputs.size() != 2 || program.manifest().is_conditioner()) return run_as(program, inputs);
  return {program.run({{inputs[0].name, inputs[0].view}, {inputs[1].name, inputs[1].view}})};
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
std::string refusal(const regplug::AOTInductorBundle& program, const Inputs& inputs) {
  return message_of([&] { run_flat(program, inputs); });
}

Inputs with(Inputs inputs, std::size_t i, const TensorView& other) {
  inputs[i].view = other;
  return inputs;
}

std::vector<TensorView> views_of(const std::vector<Tensor>& tensors) { return {tensors.begin(), tensors.end()}; }

bool apart(const TensorView& one, const TensorView& other) {
  return one.data() + one.nbytes() <= other.data() || other.data() + other.nbytes() <= one.data();
}

bool equal(const TensorView& one, const TensorView& other) {
  if (one.nbytes() != other.nbytes()) return false;
  return one.nbytes() == 0 || std::memcmp(one.data(), other.data(), one.nbytes()) == 0;
}

// Outputs share no memory with anything, and a later call does not change them.
bool owned(const regplug::AOTInductorBundle& program, const Inputs& inputs, const std::vector<Tensor>& outputs) {
  const TensorView& input = inputs[0].view;
  std::vector<Tensor> before;
  for (const Tensor& output : outputs) before.push_back(Tensor::copy_of(output));
  std::vector<char> other(static_cast<std::size_t>(input.items()) * regplug::item_size(input.dtype()));
  run_flat(program, with(inputs, 0, TensorView(input.dtype(), other.data(), input.sizes())));
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    for (const regplug::NamedView& one : inputs) {
      if (!apart(outputs[i], one.view)) return false;
    }
    if (!equal(outputs[i], before[i])) return false;
    for (std::size_t j = 0; j < outputs.size(); ++j) {
      if (j != i && !apart(outputs[i], outputs[j])) return false;
    }
  }
  return true;
}

bool check_cases(const regplug::AOTInductorBundle& program, const regplug::Bundle& bundle, regplug::Json& report) {
  bool all = true;
  for (const regplug::GoldenCase& golden : bundle.manifest().cases) {
    const Inputs inputs = regplug::golden_inputs(bundle, golden);
    const std::vector<Tensor> outputs = run_flat(program, inputs);
    const double error = regplug::golden_error(bundle, golden, views_of(outputs));
    const double tolerance = regplug::golden_tolerance(bundle.program(), golden, bundle.manifest());
    // a contiguous and aligned input is used without a copy; the result must not be a view of it
    std::vector<Tensor> copies;
    Inputs copied;
    for (auto one = inputs.rbegin(); one != inputs.rend(); ++one) {  // their order does not matter
      copies.push_back(Tensor::copy_of(one->view));
      copied.push_back({one->name, copies.back()});
    }
    const std::vector<Tensor> of_copy = run_flat(program, copied);
    std::reverse(copied.begin(), copied.end());
    const bool near = regplug::golden_error(bundle, golden, views_of(of_copy)) <= tolerance;
    const bool ok = error <= tolerance && near && owned(program, inputs, outputs) && owned(program, copied, of_copy) &&
                    (!golden.start || !inputs[0].view.is_contiguous());
    report["cases"][golden.name] = {{"error", error}, {"tolerance", tolerance}, {"ok", ok}};
    all = all && ok;
  }
  return all;
}

// Names, and further inputs, that must be rejected; `inputs` are right.
void refuse_more_inputs(const regplug::AOTInductorBundle& program, const Inputs& inputs, regplug::Json& report) {
  const auto named = [&](const std::string& what, const Inputs& given) {
    report["names"][what] = message_of([&] { run_as(program, given); });
  };
  const Inputs few(inputs.begin(), inputs.end() - 1);
  Inputs twice = inputs;
  twice.push_back(inputs.front());
  Inputs unknown = inputs;
  unknown.back().name = "other\n";
  named("few", few);
  named("twice", twice);
  named("unknown", unknown);
  report["names"]["none"] = message_of([&] { run_as(program, inputs[0].view); });  // right if it is the only one
  report["names"]["all"] = message_of([&] { run_as(program, inputs); });
  for (std::size_t i = 1; i < inputs.size(); ++i) {
    const std::string name(inputs[i].name);
    const TensorView& good = inputs[i].view;
    const regplug::Sizes& sizes = good.sizes();
    regplug::Json& refused = report["more"][name];
    refused["width"] = refusal(program, with(inputs, i, TensorView(good.dtype(), good.data(), {2, sizes[1] + 1})));
    refused["batch"] = refusal(program, with(inputs, i, good.narrow(0, 0, 1)));
    refused["rank"] = refusal(program, with(inputs, i, TensorView(good.dtype(), good.data(), {2})));
    refused["dtype"] = refusal(program, with(inputs, i, TensorView(regplug::Dtype::uint8, good.data(), sizes)));
    refused["nothing"] = refusal(program, with(inputs, i, TensorView()));
    if (good.dtype() != regplug::Dtype::boolean) continue;
    std::string bytes(static_cast<std::size_t>(2 * sizes[1]), '\1');
    const TensorView mask(good.dtype(), bytes.data(), sizes);
    bytes.back() = '\xff';
    refused["byte"] = refusal(program, with(inputs, i, mask));
    std::fill(bytes.begin() + sizes[1], bytes.end(), '\0');
    refused["false"] = refusal(program, with(inputs, i, mask));
  }
}

bool check_refusals(const regplug::AOTInductorBundle& program, regplug::Json& report) {
  const regplug::Manifest& manifest = program.manifest();
  std::vector<std::int64_t> sizes = manifest.input.shape;
  sizes[0] = 2;
  if (sizes[1] == regplug::kFree) sizes[1] = manifest.min_tokens;
  const std::int64_t length = sizes[1];
  const std::vector<std::int64_t> without_batch(sizes.begin() + 1, sizes.end());
  std::vector<std::int64_t> wider = sizes;
  wider[2] *= 2;
  const std::vector<double> zeros(static_cast<std::size_t>(regplug::Sizes(wider).product()));
  const regplug::Dtype dtype = regplug::dtype_named(manifest.input.dtype);
  const TensorView good(dtype, zeros.data(), sizes);
  const regplug::Dtype other = dtype == regplug::Dtype::float64 ? regplug::Dtype::float32 : regplug::Dtype::float64;
  std::vector<std::pair<std::string, TensorView>> bad{
      {manifest.backbone           ? "C"
       : manifest.is_conditioner() ? "T"
                                   : "R",
       good.narrow(1, 0, length - 1)},
      {manifest.backbone ? "H" : "D", TensorView(dtype, zeros.data(), wider)},
      {"rank", TensorView(dtype, zeros.data(), without_batch)},
      {"dtype", TensorView(other, zeros.data(), sizes)},
      {"nothing", TensorView()},
      {"null", TensorView(dtype, nullptr, sizes)}};
  if (manifest.min_batch > 0) bad.emplace_back("B", good.narrow(0, 0, 0));
  std::vector<std::vector<double>> memory;
  Inputs inputs{{manifest.input.name, good}};
  for (const regplug::TensorSpec& wanted : manifest.more_inputs) {
    std::vector<std::int64_t> shape{2, wanted.shape[1] == regplug::kFree ? length : wanted.shape[1]};
    memory.emplace_back(static_cast<std::size_t>(2 * shape[1]));
    std::memset(memory.back().data(), wanted.dtype == "bool" ? 1 : 0, memory.back().size() * sizeof(double));
    inputs.push_back({wanted.name, TensorView(regplug::dtype_named(wanted.dtype), memory.back().data(), shape)});
  }
  bool all = refusal(program, inputs).empty();
  for (const auto& [what, input] : bad) {
    report["refused"][what] = refusal(program, with(inputs, 0, input));
    all = all && !refusal(program, with(inputs, 0, input)).empty();
  }
  // no items need no memory
  Inputs empty = inputs;
  for (regplug::NamedView& one : empty) {
    regplug::Sizes none = one.view.sizes();
    none[0] = 0;
    one.view = TensorView(one.view.dtype(), nullptr, none);
  }
  if (manifest.min_batch == 0) all = all && refusal(program, empty).empty();
  refuse_more_inputs(program, inputs, report);
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
  return all;
}

bool check(const std::string& dir, regplug::Json& report) {
  const regplug::Bundle bundle = regplug::Bundle::open(dir, {}, "aotinductor");
  const regplug::AOTInductorBundle program = regplug::AOTInductorBundle::open(dir, bundle.digest());
  report["cond_dim"] = program.cond_dim();
  report["digest"] = program.digest();
  report["isa"] = program.isa();
  const bool cases = check_cases(program, bundle, report);
  return check_refusals(program, report) && cases;
}

}  // namespace

inline int main_of(int argc, char** argv) {
  const bool global = argc == 4 && std::string(argv[2]) == "--global";
  if (argc != 2 && argc != 3 && !global) {
    std::cerr << "usage: regplug_aoti_golden BUNDLE [OTHER | --global LIBRARY]\n";
    return 2;
  }
  regplug::Json report;
  try {
    if (global && ::dlopen(argv[3], RTLD_NOW | RTLD_GLOBAL) == nullptr) throw regplug::Error(::dlerror());
    if (argc == 3) regplug::AOTInductorBundle::open(argv[2]);
    report["ok"] = check(argv[1], report);
  } catch (const std::exception& error) {
    report["ok"] = false;
    report["error"] = error.what();
  }
  std::cout << report.dump() << "\n";
  return report["ok"] == true ? 0 : 1;
}

}  // namespace aoti_golden
