// regplug_bench latency BUNDLE...   microseconds of one call, for each way to run the bundle's module, by batch size
// regplug_bench open BUNDLE KIND    milliseconds to open a bundle and to compute its digests, and the memory used
// Prints one JSON object. Uses one thread.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <regplug/aotinductor.h>
#include <regplug/detail/sha256.h>
#include <regplug/regplug.h>
#include <regplug/torchscript.h>
#include <torch/csrc/inductor/aoti_runner/model_container_runner_cpu.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Call = std::function<void()>;

constexpr int kRounds = 60;
constexpr double kBlock = 4000;  // microseconds that the slowest way takes in a round

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// Microseconds of one call: the median over rounds in which all calls take turns, so that noise affects all alike.
regplug::Json microseconds(const std::vector<std::pair<std::string, Call>>& calls) {
  double slowest = 0;
  for (const auto& [name, call] : calls) {
    for (int i = 0; i < 20; ++i) call();
    const auto start = Clock::now();
    for (int i = 0; i < 5; ++i) call();
    slowest = std::max(slowest, std::chrono::duration<double, std::micro>(Clock::now() - start).count() / 5);
  }
  const int repeats = std::max(1, static_cast<int>(kBlock / slowest));
  std::map<std::string, std::vector<double>> taken;
  for (int round = 0; round < kRounds; ++round) {
    for (std::size_t i = 0; i < calls.size(); ++i) {
      const auto& [name, call] = calls[(i + static_cast<std::size_t>(round)) % calls.size()];
      const auto start = Clock::now();
      for (int j = 0; j < repeats; ++j) call();
      taken[name].push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count() / repeats);
    }
  }
  regplug::Json result;
  for (const auto& [name, values] : taken) result[name] = median(values);
  return result;
}

std::map<std::string, at::Tensor> weights_of(const regplug::Bundle& bundle) {
  std::map<std::string, at::Tensor> weights;
  for (const auto& [name, entry] : bundle.weights().tensors()) weights[name] = regplug::to_tensor(entry);
  return weights;
}

// The same computation with ATen's operations and nothing else.
std::function<std::vector<at::Tensor>(const at::Tensor&)> raw(const regplug::Bundle& bundle) {
  const std::string& strategy = bundle.manifest().strategy;
  const auto weights = weights_of(bundle);
  const bool conditioner = bundle.manifest().is_conditioner();
  const auto weight = [&](const std::string& name) { return weights.at((conditioner ? "readout." : "") + name); };
  std::function<at::Tensor(const at::Tensor&)> readout;
  if (strategy == "regplug:compress-concat") {
    readout = [w = weight("compress.weight")](const at::Tensor& x) { return at::linear(x, w).flatten(1); };
  } else if (strategy == "regplug:pool") {
    readout = [w = weight("logits")](const at::Tensor& x) {
      const at::Tensor mixing = at::softmax(w, 0).expand({x.size(0), 1, x.size(1)});
      return at::bmm(mixing, x).squeeze(1);
    };
  } else if (strategy == "regplug:join") {  // the three parts of bench.py, joined by hand
    readout = [w = weight("parts.registers.readout.compress.weight")](const at::Tensor& x) {
      const at::Tensor registers = at::linear(x.narrow(1, 1, 4), w).flatten(1);
      return at::cat({x.select(1, 0), registers, x.narrow(1, 5, x.size(1) - 5).mean(1)}, 1);
    };
  } else {
    throw regplug::Error("bench: expected pool, compress-concat or join, got " + strategy + ".");
  }
  if (!conditioner) return [readout](const at::Tensor& x) { return std::vector<at::Tensor>{readout(x)}; };
  const regplug::LayoutRecord layout = *bundle.manifest().layout;
  const auto pairs = static_cast<std::int64_t>(bundle.manifest().outputs.size());
  return [=, w0 = weights.at("film.mlp.0.weight"), b0 = weights.at("film.mlp.0.bias"),
          w2 = weights.at("film.mlp.2.weight"), b2 = weights.at("film.mlp.2.bias")](const at::Tensor& tokens) {
    const at::Tensor registers = tokens.narrow(1, *layout.start, layout.num_registers).contiguous();
    const at::Tensor hidden = at::gelu(at::linear(readout(registers), w0, b0));
    return at::linear(hidden, w2, b2).chunk(pairs, -1);
  };
}

void latency(const std::string& dir, regplug::Json& report) {
  const regplug::Bundle bundle = regplug::Bundle::open(dir);
  const regplug::Manifest& manifest = bundle.manifest();
  const auto compiled = regplug::AOTInductorBundle::open(dir);
  const auto scripted = regplug::TorchScriptBundle::open(dir);
  torch::jit::Module plain = torch::jit::load(dir + "/program.torchscript.pt");
  const auto operations = raw(bundle);
  const std::string library = dir + "/" + regplug::Bundle::open(dir, regplug::Options(), "aotinductor").program().file;
  torch::inductor::AOTIModelContainerRunnerCpu runner(library, 1);
  const auto weights = weights_of(bundle);
  const std::unique_ptr<regplug_bundle, void (*)(regplug_bundle*)> bare(regplug_open(dir.c_str(), nullptr, 0),
                                                                        regplug_close);
  if (!bare) throw regplug::Error(regplug_last_error());
  for (const std::int64_t batch : {1, 64, 256}) {
    const std::int64_t length = manifest.is_conditioner() ? 201 : manifest.num_registers;
    const at::Tensor input = at::randn({batch, length, manifest.hidden_dim});
    const regplug::TensorView shown = regplug::view_of(input);
    std::vector<std::pair<std::string, Call>> calls;
    calls.emplace_back("raw operations", [&] {
      const c10::InferenceMode inference;
      operations(input);
    });
    calls.emplace_back("torch::jit::load", [&] {
      const c10::InferenceMode inference;
      const c10::IValue result = plain.forward({input});
      if (result.isTensor()) return;
      std::vector<std::pair<at::Tensor, at::Tensor>> pairs;  // which the caller has to unpack
      for (const c10::IValue& pair : result.toListRef()) {
        pairs.emplace_back(pair.toTupleRef().elements()[0].toTensor(), pair.toTupleRef().elements()[1].toTensor());
      }
    });
    if (manifest.is_conditioner()) {
      calls.emplace_back("TorchScriptBundle", [&] { scripted.run_film(input); });
      calls.emplace_back("AOTInductorBundle", [&] { compiled.run_film(shown); });
    } else {
      calls.emplace_back("TorchScriptBundle", [&] { scripted.run(input); });
      calls.emplace_back("AOTInductorBundle", [&] { compiled.run(shown); });
    }
    calls.emplace_back("torch::inductor", [&] {
      const c10::InferenceMode inference;
      std::vector<at::Tensor> inputs{input};
      for (const auto& [name, tensor] : weights) inputs.push_back(tensor);
      runner.run(inputs);
    });
    const std::vector<std::int64_t> sizes = input.sizes().vec();
    const regplug_tensor given{nullptr, REGPLUG_FLOAT32, 3, sizes.data(), nullptr, input.const_data_ptr()};
    calls.emplace_back("without libtorch", [&] {
      regplug_outputs* const outputs = regplug_run(bare.get(), &given, 1);
      if (outputs == nullptr) throw regplug::Error(regplug_last_error());
      regplug_free_outputs(outputs);
    });
    report["B=" + std::to_string(batch)] = microseconds(calls);
  }
}

// A line of /proc/self/status, in bytes.
double status(const std::string& name) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, name.size() + 1, name + ":") == 0) return 1024 * std::stod(line.substr(name.size() + 1));
  }
  return 0;
}

double milliseconds(const Call& call) {
  const auto start = Clock::now();
  call();
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

void open(const std::string& dir, const std::string& kind, regplug::Json& report) {
  // starts libtorch's thread pool and its matrix library
  at::linear(at::ones({2, 64}), at::ones({64, 64}));
  const double before = status("VmRSS");
  report["open"] = milliseconds([&] {
    if (kind == "torchscript") {
      regplug::TorchScriptBundle::open(dir);
    } else {
      regplug::AOTInductorBundle::open(dir);
    }
  });
  report["peak_bytes"] = status("VmHWM") - before;
  report["again"] = milliseconds([&] {
    if (kind == "torchscript") {
      regplug::TorchScriptBundle::open(dir);
    } else {
      regplug::AOTInductorBundle::open(dir);
    }
  });
  std::string weights;
  {
    std::ifstream file(dir + "/weights.safetensors", std::ios::binary);
    weights.assign(std::istreambuf_iterator<char>(file), {});
  }
  report["weights_bytes"] = weights.size();
  report["digest_of_weights"] = milliseconds([&] { regplug::detail::sha256_hex(weights); });
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  at::set_num_threads(1);
  regplug::Json report = regplug::Json::object();
  try {
    if (words.size() == 3 && words[0] == "open") {
      open(words[1], words[2], report);
    } else if (words.size() >= 2 && words[0] == "latency") {
      for (std::size_t i = 1; i < words.size(); ++i) latency(words[i], report[words[i]]);
    } else {
      std::cerr << "usage: regplug_bench latency BUNDLE... | open BUNDLE aotinductor|torchscript\n";
      return 2;
    }
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
  std::cout << report.dump(1) << "\n";
  return 0;
}
