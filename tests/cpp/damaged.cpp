// regplug_damaged KIND ORIGINAL: opens every folder that stdin names, one per line, as KIND (`bundle`, `torchscript`,
// `aotinductor`), and prints a line of JSON for each: `refused` with the message, or the errors of its outputs compared
// with those of the bundle ORIGINAL, or for `bundle` the sha256 of its weights.
#include <regplug/torchscript.h>

#include <regplug/aotinductor.h>

#include <algorithm>
#include <iostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace damaged {
namespace {

using regplug::Bundle;
using regplug::Json;
using regplug::Tensor;
using regplug::TensorView;

template <typename One, typename Convert>
std::vector<Tensor> flat(const std::vector<std::pair<One, One>>& pairs, Convert convert) {
  std::vector<Tensor> outputs;
  for (const auto& [gamma, beta] : pairs) {
    outputs.push_back(convert(gamma));
    outputs.push_back(convert(beta));
  }
  return outputs;
}

std::vector<Tensor> run(const regplug::TorchScriptBundle& opened, const TensorView& given) {
  const auto copied = [](const at::Tensor& one) { return Tensor::copy_of(regplug::view_of(one)); };
  const at::Tensor input = regplug::to_tensor(given);
  if (opened.manifest().is_conditioner()) return flat(opened.run_film(input), copied);
  return {copied(opened.run(input))};
}

std::vector<Tensor> run(const regplug::AOTInductorBundle& opened, const TensorView& given) {
  if (opened.manifest().is_conditioner()) {
    return flat(opened.run_film(given), [](const Tensor& one) { return one; });
  }
  return {opened.run(given)};
}

template <typename Opened>
Json errors(const std::string& dir, const Bundle& original) {
  const Opened opened = Opened::open(dir);
  Json found;
  for (const regplug::GoldenCase& golden : original.manifest().cases) {
    const std::vector<Tensor> outputs = run(opened, regplug::golden_input(original, golden));
    std::vector<TensorView> views(outputs.begin(), outputs.end());
    std::ostringstream error;  // JSON has no NaN
    error << regplug::golden_error(original, golden, views);
    found[golden.name] = error.str();
  }
  return {{"errors", found}};
}

Json open(const std::string& kind, const std::string& dir, const Bundle& original) {
  if (kind == "torchscript") return errors<regplug::TorchScriptBundle>(dir, original);
  if (kind == "aotinductor") return errors<regplug::AOTInductorBundle>(dir, original);
  const Bundle bundle = Bundle::open(dir);
  return {{"weights", bundle.manifest().files.at("weights.safetensors").sha256}};
}

}  // namespace

inline int main_of(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: regplug_damaged KIND ORIGINAL\n";
    return 2;
  }
  const Bundle original = Bundle::open(argv[2]);
  std::string dir;
  while (std::getline(std::cin, dir)) {
    Json answer;
    try {
      answer = open(argv[1], dir, original);
    } catch (const regplug::Error& error) {
      answer = {{"refused", error.what()}};
    }
    std::cout << answer.dump() << std::endl;
  }
  return 0;
}

}  // namespace damaged
