// regplug_verdict: prints a line for each record on stdin: "accepted", or the message of the error. A record is a kind
// ('s' for safetensors or 'm' for a manifest), eight bytes of length, little-endian, and the bytes.
#include <regplug/manifest.h>
// the header above is compiled with nothing before it
#include <regplug/detail/read_manifest.h>
#include <regplug/error.h>
#include <regplug/safetensors.h>

#include <cstddef>
#include <cstdint>
#include <iostream>
#include <string>

namespace verdict {
namespace {

std::string verdict_on(char kind, const std::string& bytes) {
  try {
    if (kind == 's') {
      const regplug::SafeTensors file(bytes, "file");
    } else {
      regplug::detail::read_manifest(bytes, "bundle DIR: manifest.json");
    }
    return "accepted";
  } catch (const regplug::Error& error) {
    return error.what();
  }
}

}  // namespace

inline int main_of(int, char**) {
  std::ios::sync_with_stdio(false);
  char head[9];
  while (std::cin.read(head, sizeof head)) {
    std::uint64_t length = 0;
    for (std::size_t i = sizeof head; i-- > 1;) length = length << 8 | static_cast<unsigned char>(head[i]);
    std::string bytes(static_cast<std::size_t>(length), '\0');
    if (!std::cin.read(bytes.data(), static_cast<std::streamsize>(length))) return 1;
    std::cout << verdict_on(head[0], bytes) << '\n';
  }
  return 0;
}

}  // namespace verdict

#ifndef WITH_TORCHSCRIPT  // where it is one of several programs
int main(int argc, char** argv) { return verdict::main_of(argc, argv); }
#endif
