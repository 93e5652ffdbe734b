// regplug_open BUNDLE... [--torchscript | --aotinductor] [--pin HEX] [--follow-links]: opens each bundle, without a
// program unless a backend is named, and prints a line for it: "ok", or the message of the error (exit status 1).
#ifdef WITH_TORCHSCRIPT
#include <regplug/torchscript.h>
#endif
#include <regplug/aotinductor.h>

#include <iostream>
#include <string>
#include <vector>

namespace open_bundles {

inline int main_of(int argc, char** argv) {
  std::vector<std::string> dirs;
  std::string backend;
  regplug::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--torchscript" || argument == "--aotinductor") {
      backend = argument;
    } else if (argument == "--follow-links") {
      options.follow_links = true;
    } else if (argument == "--pin" && i + 1 < argc) {
      options.pin = argv[++i];
    } else {
      dirs.push_back(argument);
    }
  }
  int failed = 0;
  for (const std::string& dir : dirs) {
    try {
      if (backend == "--aotinductor") {
        regplug::AOTInductorBundle::open(dir, options);
#ifdef WITH_TORCHSCRIPT
      } else if (backend == "--torchscript") {
        regplug::TorchScriptBundle::open(dir, options);
#endif
      } else {
        regplug::Bundle::open(dir, options);
      }
      std::cout << "ok" << std::endl;
    } catch (const regplug::Error& error) {
      std::cout << error.what() << std::endl;
      failed = 1;
    }
  }
  return failed;
}

}  // namespace open_bundles
