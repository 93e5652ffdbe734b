// regplug_open BUNDLE [--data] [--pin HEX] [--follow-links]: prints "ok", or the message of the error (exit 1).
#include <regplug/torchscript.h>

#include <iostream>
#include <string>

int main(int argc, char** argv) {
  std::string dir;
  regplug::Options options;
  bool data = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--data") {
      data = true;
    } else if (argument == "--follow-links") {
      options.follow_links = true;
    } else if (argument == "--pin" && i + 1 < argc) {
      options.pin = argv[++i];
    } else {
      dir = argument;
    }
  }
  try {
    if (data) {
      regplug::Bundle::open(dir, options);
    } else {
      regplug::TorchScriptBundle::open(dir, options);
    }
  } catch (const regplug::Error& error) {
    std::cout << error.what() << "\n";
    return 1;
  }
  std::cout << "ok\n";
  return 0;
}
