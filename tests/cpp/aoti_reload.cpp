// regplug_aoti_reload BUNDLE WEIGHTS RELOADS [OTHER...]: four threads run while the weights alternate between those of
// BUNDLE and WEIGHTS, and a fifth opens BUNDLE and the OTHER bundles. Every result must belong to one of the two sets
// of weights. Prints one JSON object.
#include <regplug/aotinductor.h>

#include <atomic>
#include <cmath>
#include <cstddef>
#include <exception>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace aoti_reload {
namespace {

using regplug::Tensor;
using regplug::TensorView;

constexpr int kThreads = 4;

std::vector<float> run(const regplug::AOTInductorBundle& program, const TensorView& input) {
  std::vector<float> numbers;
  const auto add = [&](const Tensor& tensor) {
    numbers.insert(numbers.end(), tensor.data<float>(), tensor.data<float>() + tensor.items());
  };
  if (!program.manifest().is_conditioner()) {
    add(program.run(input));
    return numbers;
  }
  for (const auto& [gamma, beta] : program.run_film(input)) {
    add(gamma);
    add(beta);
  }
  return numbers;
}

// Not bitwise: a kernel chooses its loops by the alignment of the memory.
bool near(const std::vector<float>& one, const std::vector<float>& other) {
  if (one.size() != other.size()) return false;
  for (std::size_t i = 0; i < one.size(); ++i) {
    if (!(std::abs(one[i] - other[i]) < 1e-4F)) return false;
  }
  return true;
}

bool check(const std::string& dir, const std::string& other, int reloads, const std::vector<std::string>& others,
           regplug::Json& report) {
  const regplug::Bundle bundle = regplug::Bundle::open(dir);
  regplug::AOTInductorBundle program = regplug::AOTInductorBundle::open(dir);
  const std::string own = dir + "/weights.safetensors";
  const TensorView input(bundle.golden().at("batch_2.input"));
  const std::vector<float> before = run(program, input);
  program.reload_weights(other);
  const std::vector<float> after = run(program, input);

  std::atomic<bool> stop{false};
  std::atomic<int> opened{0};
  std::atomic<int> counts[3]{};  // before, after, neither
  std::mutex mutex;
  std::string failure;
  const auto guarded = [&](auto work) {
    return [&, work] {
      try {
        work();
      } catch (const std::exception& error) {
        const std::lock_guard<std::mutex> lock(mutex);
        failure = error.what();
      }
    };
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back(guarded([&] {
      while (!stop) {
        const std::vector<float> result = run(program, input);
        ++counts[near(result, before) ? 0 : near(result, after) ? 1 : 2];
      }
    }));
  }
  threads.emplace_back(guarded([&] {
    while (!stop) {
      for (const std::string& path : others) regplug::AOTInductorBundle::open(path);
      regplug::AOTInductorBundle::open(dir);
      ++opened;
    }
  }));
  int refused = 0;
  const auto seen = [&] { return opened > 0 && counts[0] > 0 && counts[1] > 0; };
  for (int i = 0; i < reloads || (!seen() && i < 100000); ++i) {
    program.reload_weights(i % 2 == 0 ? own : other);
    if (i >= reloads) continue;
    try {
      program.reload_weights(dir + "/golden.safetensors");  // does not fit: the weights must stay
    } catch (const regplug::Error& error) {
      report["refused"] = error.what();
      ++refused;
    }
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  report["before"] = counts[0].load();
  report["after"] = counts[1].load();
  report["neither"] = counts[2].load();
  report["opened"] = opened.load();
  if (!failure.empty()) report["error"] = failure;
  return failure.empty() && !near(before, after) && refused == reloads && seen() && counts[2] == 0;
}

}  // namespace

inline int main_of(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: regplug_aoti_reload BUNDLE WEIGHTS RELOADS [OTHER...]\n";
    return 2;
  }
  regplug::Json report;
  try {
    report["ok"] = check(argv[1], argv[2], std::stoi(argv[3]), std::vector<std::string>(argv + 4, argv + argc), report);
  } catch (const std::exception& error) {
    report["ok"] = false;
    report["error"] = error.what();
  }
  std::cout << report.dump() << "\n";
  return report["ok"] == true ? 0 : 1;
}

}  // namespace aoti_reload
