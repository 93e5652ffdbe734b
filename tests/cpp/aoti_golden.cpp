// regplug_aoti_golden BUNDLE [OTHER | --global LIBRARY]: runs every golden case of BUNDLE, and inputs that must be
// rejected. Before that it opens and closes OTHER, a bundle with other code, or loads LIBRARY into the global scope.
// Prints one JSON object.
#include <regplug/aotinductor.h>

#include <dlfcn.h>

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

std::vector<Tensor> run_flat(const regplug::AOTInductorBundle& program, const TensorView& input) {
  if (!program.manifest().is_conditioner()) return {program.run(input)};
  std::vector<Tensor> flat;
  for (const auto& [gamma, beta] : program.run_film(input)) flat.insert(flat.end(), {gamma, beta});
  return flat;
}

// The message that rejects the input; empty when it is accepted.
std::string refusal(const regplug::AOTInductorBundle& program, const TensorView& input) {
  try {
    run_flat(program, input);
    return "";
  } catch (const regplug::Error& error) {
    return error.what();
  }
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
bool owned(const regplug::AOTInductorBundle& program, const TensorView& input, const std::vector<Tensor>& outputs) {
  std::vector<Tensor> before;
  for (const Tensor& output : outputs) before.push_back(Tensor::copy_of(output));
  std::vector<char> other(static_cast<std::size_t>(input.items()) * regplug::item_size(input.dtype()));
  run_flat(program, TensorView(input.dtype(), other.data(), input.sizes()));
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (!apart(outputs[i], input) || !equal(outputs[i], before[i])) return false;
    for (std::size_t j = 0; j < outputs.size(); ++j) {
      if (j != i && !apart(outputs[i], outputs[j])) return false;
    }
  }
  return true;
}

bool check_cases(const regplug::AOTInductorBundle& program, const regplug::Bundle& bundle, regplug::Json& report) {
  bool all = true;
  for (const regplug::GoldenCase& golden : bundle.manifest().cases) {
    const TensorView input = regplug::golden_input(bundle, golden);
    const std::vector<Tensor> outputs = run_flat(program, input);
    const double error = regplug::golden_error(bundle, golden, views_of(outputs));
    const double tolerance = regplug::golden_tolerance(bundle.program(), golden, bundle.manifest());
    // a contiguous and aligned input is used without a copy; the result must not be a view of it
    const Tensor copy = Tensor::copy_of(input);
    const std::vector<Tensor> of_copy = run_flat(program, copy);
    const bool near = regplug::golden_error(bundle, golden, views_of(of_copy)) <= tolerance;
    const bool ok = error <= tolerance && near && owned(program, input, outputs) && owned(program, copy, of_copy) &&
                    (!golden.start || !input.is_contiguous());
    report["cases"][golden.name] = {{"error", error}, {"tolerance", tolerance}, {"ok", ok}};
    all = all && ok;
  }
  return all;
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
  std::vector<std::int64_t> empty = sizes;
  empty[0] = 0;
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
  bool all = refusal(program, good).empty();
  for (const auto& [what, input] : bad) {
    report["refused"][what] = refusal(program, input);
    all = all && !refusal(program, input).empty();
  }
  // no items need no memory
  if (manifest.min_batch == 0) all = all && refusal(program, TensorView(dtype, nullptr, empty)).empty();
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
