// regplug_reload BUNDLE WEIGHTS: four threads run while the weights alternate between those of BUNDLE and WEIGHTS.
// Every result must belong to one of the two, and both must be seen. Prints one JSON object.
#include <regplug/torch_tensor.h>

#include <ATen/ATen.h>
#include <regplug/torchscript.h>

#include <atomic>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

namespace reload {
namespace {

constexpr int kThreads = 4;
constexpr int kReloads = 200;

at::Tensor run(const regplug::TorchScriptBundle& program, const at::Tensor& input) {
  if (!program.manifest().is_conditioner()) return program.run(input);
  std::vector<at::Tensor> flat;
  for (const auto& [gamma, beta] : program.run_film(input)) flat.insert(flat.end(), {gamma, beta});
  return at::cat(flat, 1);
}

bool check(const std::string& dir, const std::string& other, regplug::Json& report) {
  regplug::TorchScriptBundle program = regplug::TorchScriptBundle::open(dir);
  const std::string own = dir + "/weights.safetensors";
  std::vector<std::int64_t> shape = program.manifest().input.shape;
  shape[0] = 2;
  if (shape[1] == regplug::kFree) shape[1] = program.manifest().min_tokens;
  const at::Tensor input = at::randn(shape);
  const at::Tensor before = run(program, input);
  program.reload_weights(other);
  const at::Tensor after = run(program, input);

  std::atomic<bool> stop{false};
  std::atomic<int> counts[3]{};  // before, after, neither
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      while (!stop) {
        const at::Tensor result = run(program, input);
        ++counts[result.equal(before) ? 0 : result.equal(after) ? 1 : 2];
      }
    });
  }
  int refused = 0;
  const auto seen = [&] { return counts[0] > 0 && counts[1] > 0; };
  for (int i = 0; i < kReloads || (!seen() && i < 100000); ++i) {
    program.reload_weights(i % 2 == 0 ? own : other);
    if (i >= kReloads) continue;
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
  report["reloads"] = kReloads;
  return !before.equal(after) && refused == kReloads && seen() && counts[2] == 0;
}

}  // namespace

inline int main_of(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: regplug_reload BUNDLE WEIGHTS\n";
    return 2;
  }
  regplug::Json report;
  try {
    report["ok"] = check(argv[1], argv[2], report);
  } catch (const regplug::Error& error) {
    report["ok"] = false;
    report["error"] = error.what();
  }
  std::cout << report.dump() << "\n";
  return report["ok"] == true ? 0 : 1;
}

}  // namespace reload
