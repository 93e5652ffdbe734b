// What Python tests call: the functions of the runtime by name, its last error, and the binding of a library.
#include <regplug/detail/runtime_shim.h>

#include <cstddef>
#include <cstdio>
#include <exception>
#include <string>

extern "C" {

__attribute__((visibility("default"))) const void* runtime_function(const char* name) {
  return regplug::runtime::find_function(name);
}

__attribute__((visibility("default"))) const char* runtime_error() { return regplug::runtime::shim_error(); }

// Writes the bound library over the bytes, which keep their size, or the reason that there is none to `error`.
__attribute__((visibility("default"))) int bind_library(char* bytes, std::size_t size, char* error, std::size_t room) {
  try {
    const std::string bound = regplug::detail::linked({bytes, size});
    bound.copy(bytes, size);
    return 0;
  } catch (const std::exception& refused) {
    std::snprintf(error, room, "%s", refused.what());
    return 1;
  }
}
}
