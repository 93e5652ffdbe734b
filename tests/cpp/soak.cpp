// regplug_soak KIND BUNDLE WEIGHTS ROUNDS: in each round opens BUNDLE, runs it, reloads it with WEIGHTS, runs it again
// and closes it, and reloads another that stays open. KIND is `torchscript`, `aotinductor`, or `both`, in two threads.
// Prints 100 lines over all rounds: resident bytes, descriptors, threads.
#include <regplug/torchscript.h>

#include <regplug/aotinductor.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

namespace soak {
namespace {

std::int64_t entries(const char* folder) {
  std::filesystem::directory_iterator found(folder);
  return std::distance(begin(found), end(found));
}

void report() {
  std::ifstream pages("/proc/self/statm");
  std::int64_t all = 0;
  std::int64_t resident = 0;
  pages >> all >> resident;
  std::cout << resident * ::sysconf(_SC_PAGESIZE) << " " << entries("/proc/self/fd") << " "
            << entries("/proc/self/task") << std::endl;
}

void round_of(regplug::TorchScriptBundle bundle, const at::Tensor& input, const std::string& weights) {
  const at::Tensor before = bundle.run(input);
  bundle.reload_weights(weights);
  if (bundle.run(input).equal(before)) throw regplug::Error("reload: expected other numbers, got the same.");
}

void round_of(regplug::AOTInductorBundle bundle, const at::Tensor& input, const std::string& weights) {
  const regplug::TensorView given = regplug::view_of(input);
  const at::Tensor before = regplug::to_tensor(bundle.run(given).view());
  bundle.reload_weights(weights);
  if (regplug::to_tensor(bundle.run(given).view()).equal(before)) {
    throw regplug::Error("reload: expected other numbers, got the same.");
  }
}

template <typename Opened>
void soak(const std::string& dir, const std::string& weights, int rounds) {
  Opened kept = Opened::open(dir);
  std::vector<std::int64_t> shape = kept.manifest().input.shape;
  shape[0] = 2;
  const at::Tensor input = at::randn(shape);
  for (int i = 1; i <= rounds; ++i) {
    round_of(Opened::open(dir), input, weights);
    kept.reload_weights(weights);
    if (i % (rounds / 100) == 0) report();
  }
}

}  // namespace

inline int main_of(int argc, char** argv) {
  const std::vector<std::string> given(argv + 1, argv + argc);
  if (given.size() != 4) {
    std::cerr << "usage: regplug_soak KIND BUNDLE WEIGHTS ROUNDS\n";
    return 2;
  }
  try {
    const int rounds = std::stoi(given[3]);
    if (given[0] == "both") {
      std::thread other([&] { soak<regplug::AOTInductorBundle>(given[1], given[2], rounds); });
      soak<regplug::TorchScriptBundle>(given[1], given[2], rounds);
      other.join();
    } else if (given[0] == "torchscript") {
      soak<regplug::TorchScriptBundle>(given[1], given[2], rounds);
    } else {
      soak<regplug::AOTInductorBundle>(given[1], given[2], rounds);
    }
  } catch (const regplug::Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}

}  // namespace soak
