// digits KIND READOUT CONDITIONER TOKENS.safetensors OUT.safetensors: reads the registers of every image with both
// bundles, by their program of that KIND, writes what they gave, and prints the microseconds of one call with one image,
// the median of many.
#include <regplug/aotinductor.h>
#include <regplug/safetensors.h>
#include <regplug/write_safetensors.h>
#ifndef REGPLUG_RUNTIME  // which regplug::runtime defines: there is no libtorch
#include <ATen/Parallel.h>
#include <regplug/torchscript.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <iostream>
#include <map>
#include <string>
#include <vector>

namespace {

regplug::TensorView view(const regplug::Tensor& tensor) { return tensor; }
#ifndef REGPLUG_RUNTIME
regplug::TensorView view(const at::Tensor& tensor) { return regplug::view_of(tensor); }
#endif

template <typename Call>
double median_microseconds(Call call) {
  std::vector<double> taken;
  for (int i = 0; i < 3000; ++i) {
    const auto start = std::chrono::steady_clock::now();
    call();
    taken.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(taken.begin(), taken.begin() + 1500, taken.end());
  return taken[1500];
}

// The tokens are whatever tensor the bundle's class takes; both know narrow().
template <typename Bundle, typename Tokens>
void run(const Bundle& readout, const Bundle& conditioner, const Tokens& tokens, std::int64_t count,
         const std::string& out) {
  const regplug::LayoutRecord& layout = *conditioner.manifest().layout;
  // a strided view, as a program has it at hand: the loader takes care of that
  const auto registers = tokens.narrow(1, count + *layout.start, layout.num_registers);
  const auto conditioning = readout.run(registers);
  const auto pairs = conditioner.run_film(tokens);
  std::map<std::string, regplug::TensorView> given{{"conditioning", view(conditioning)}};
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    given["gamma_" + std::to_string(i)] = view(pairs[i].first);
    given["beta_" + std::to_string(i)] = view(pairs[i].second);
  }
  regplug::write_safetensors(out, given);
  const auto one = registers.narrow(0, 0, 1);
  const auto first = tokens.narrow(0, 0, 1);
  std::cout << regplug::Json{{"readout", median_microseconds([&] { readout.run(one); })},
                             {"conditioner", median_microseconds([&] { conditioner.run_film(first); })}}
            << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() != 5 || (words[0] != "torchscript" && words[0] != "aotinductor")) {
    std::cerr << "usage: digits torchscript|aotinductor READOUT CONDITIONER TOKENS.safetensors OUT.safetensors\n";
    return 2;
  }
  try {
    const regplug::SafeTensors file = regplug::read_safetensors(words[3]);
    const regplug::TensorBytes& tokens = file.at("tokens");
#ifndef REGPLUG_RUNTIME
    at::set_num_threads(1);
    if (words[0] == "torchscript") {
      using Bundle = regplug::TorchScriptBundle;
      run(Bundle::open(words[1]), Bundle::open(words[2]), regplug::to_tensor(tokens), tokens.shape[1], words[4]);
      return 0;
    }
#endif
    using Bundle = regplug::AOTInductorBundle;
    run(Bundle::open(words[1]), Bundle::open(words[2]), regplug::TensorView(tokens), tokens.shape[1], words[4]);
  } catch (const regplug::Error& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
