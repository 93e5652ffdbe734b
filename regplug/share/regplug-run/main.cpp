// regplug-run: runs a bundle's AOTInductor program on a safetensors file and writes the outputs to another.
#include <regplug/aotinductor.h>
#include <regplug/write_safetensors.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <iostream>
#include <map>
#include <new>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr const char* kUsage =
    "usage: regplug-run [--digest HEX] [--follow-links] BUNDLE IN.safetensors OUT.safetensors\n";
constexpr const char* kHelp = R"(
Runs the AOTInductor program of BUNDLE. IN holds its inputs: `registers` or `tokens` [B, R, D] for a readout, `tokens`
[B, T, D] for a conditioner, `images` [B, C, H, W] for a bundle with its backbone; for some bundles also `mask` [B, T]
of bool, and vectors by name. OUT gets `conditioning`, or `gamma_0`, `beta_0`, `gamma_1`, ...

A program is the bundle author's code.

  --digest HEX    run it only if the bundle has this digest (`regplug info` prints it)
  --follow-links  read files of the bundle through symbolic links
  --help          print this

Exit status: 0 success; 1 error, OUT is unchanged; 2 wrong usage.
)";

struct Arguments {
  std::string bundle;
  std::string in;
  std::string out;
  regplug::Options options;
};

class UsageError : public regplug::Error {
 public:
  using Error::Error;
};

Arguments parse(const std::vector<std::string>& given) {
  Arguments arguments;
  std::vector<std::string> paths;
  bool options_end = false;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const std::string& argument = given[i];
    if (options_end || argument.empty() || argument.front() != '-') {
      paths.push_back(argument);
    } else if (argument == "--") {
      options_end = true;
    } else if (argument == "--follow-links") {
      arguments.options.follow_links = true;
    } else if (argument == "--digest") {
      if (++i == given.size() || given[i].empty()) throw UsageError("--digest: expected a value, got nothing.");
      arguments.options.pin = given[i];
      try {
        regplug::check_pin(given[i]);
      } catch (const regplug::Error& error) {
        throw UsageError(error.what());
      }
    } else {
      throw UsageError(argument + ": no such option; known: --digest, --follow-links, --help.");
    }
  }
  if (paths.size() != 3) {
    throw UsageError("expected BUNDLE, IN and OUT, got " + std::to_string(paths.size()) + " paths.");
  }
  arguments.bundle = paths[0];
  arguments.in = paths[1];
  arguments.out = paths[2];
  return arguments;
}

void run(const Arguments& arguments) {
  const regplug::AOTInductorBundle bundle = regplug::AOTInductorBundle::open(arguments.bundle, arguments.options);
  const regplug::Manifest& manifest = bundle.manifest();
  const regplug::SafeTensors given = regplug::read_safetensors(arguments.in);
  std::vector<std::string> wanted;
  for (std::size_t i = 0; i < manifest.num_inputs(); ++i) wanted.push_back(manifest.input_at(i).name);
  std::sort(wanted.begin(), wanted.end());
  const std::vector<std::string> names = regplug::detail::keys_of(given.tensors());
  if (names != wanted) {
    throw regplug::Error(arguments.in + ": expected tensors " + regplug::detail::format_list(wanted) + ", got " +
                         regplug::detail::format_list(names) + ".");
  }
  std::vector<regplug::NamedView> inputs;
  for (const auto& [name, tensor] : given.tensors()) inputs.push_back({name, tensor});
  std::vector<regplug::Tensor> outputs;
  if (manifest.is_conditioner()) {
    for (const auto& [gamma, beta] : bundle.run_film(inputs)) {
      outputs.push_back(gamma);
      outputs.push_back(beta);
    }
  } else {
    outputs.push_back(bundle.run(inputs));
  }
  std::map<std::string, regplug::TensorView> named;
  for (std::size_t i = 0; i < outputs.size(); ++i) named[manifest.outputs[i].name] = outputs[i].view();
  regplug::write_safetensors(arguments.out, named);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> given(argv + 1, argv + argc);
    for (const std::string& argument : given) {
      if (argument != "--help") continue;
      std::cout << kUsage << kHelp;
      return 0;
    }
    run(parse(given));
    return 0;
  } catch (const UsageError& error) {
    std::cerr << kUsage << "error: " << error.what() << "\n";
    return 2;
  } catch (const std::bad_alloc&) {
    std::cerr << "error: expected enough memory, got none.\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
