// regplug_open BUNDLE [--torchscript | --aotinductor] [--pin HEX] [--follow-links]: opens it, without a program unless
// one is named; prints "ok", or the message of the error (exit 1). Built without torch's headers it knows aotinductor.
#ifdef WITH_TORCHSCRIPT
#include <regplug/torchscript.h>
#endif
#include <regplug/aotinductor.h>

#include <iostream>
#include <string>

int main(int argc, char** argv) {
  std::string dir;
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
      dir = argument;
    }
  }
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
  } catch (const regplug::Error& error) {
    std::cout << error.what() << "\n";
    return 1;
  }
  std::cout << "ok\n";
  return 0;
}
