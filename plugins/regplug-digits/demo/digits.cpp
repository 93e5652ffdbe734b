// digits READOUT CONDITIONER TOKENS.safetensors OUT.safetensors: reads the registers of every image with both bundles,
// writes what they gave, and prints the microseconds of one call with one image, the median of many.
#include <ATen/Parallel.h>
#include <regplug/torchscript.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A safetensors file: the header's length, the header, the bytes.
void write_file(const std::string& path, const std::map<std::string, at::Tensor>& tensors) {
  regplug::Json header = regplug::Json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor plain = tensor.contiguous();
    const std::size_t begin = data.size();
    data.append(static_cast<const char*>(plain.data_ptr()), plain.nbytes());
    header[name] = {{"dtype", "F32"}, {"shape", plain.sizes().vec()}, {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = text.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof length);
  file << text << data;
}

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

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: digits READOUT CONDITIONER TOKENS.safetensors OUT.safetensors\n";
    return 2;
  }
  try {
    at::set_num_threads(1);
    const auto readout = regplug::TorchScriptBundle::open(argv[1]);
    const auto conditioner = regplug::TorchScriptBundle::open(argv[2]);
    const std::string bytes = read_file(argv[3]);
    const at::Tensor tokens = regplug::to_tensor(regplug::SafeTensors(bytes, argv[3]).at("tokens"));
    const regplug::Layout& layout = *conditioner.manifest().layout;
    // a strided view, as a program has it at hand: the loader takes care of that
    const at::Tensor registers = tokens.narrow(1, tokens.size(1) + *layout.start, layout.num_registers);

    std::map<std::string, at::Tensor> given{{"conditioning", readout.run(registers)}};
    int layer = 0;
    for (const auto& [gamma, beta] : conditioner.run_film(tokens)) {
      given["gamma_" + std::to_string(layer)] = gamma;
      given["beta_" + std::to_string(layer++)] = beta;
    }
    write_file(argv[4], given);
    const at::Tensor one = registers.narrow(0, 0, 1);
    const at::Tensor first = tokens.narrow(0, 0, 1);
    std::cout << regplug::Json{{"readout", median_microseconds([&] { readout.run(one); })},
                               {"conditioner", median_microseconds([&] { conditioner.run_film(first); })}}
              << "\n";
  } catch (const regplug::Error& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
