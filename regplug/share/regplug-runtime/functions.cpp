#include "functions.h"

namespace regplug::runtime {
namespace {

struct Function {
  std::string_view name;
  const void* address;
};

#define REGPLUG_FUNCTION(name) Function{#name, reinterpret_cast<const void*>(&name)},

// What a program may call; `regplug export` reads these files too, and records whether a program needs libtorch.
const Function kFunctions[] = {
#include "functions.inc"
#ifdef __x86_64__
#define REGPLUG_VECTOR(vector, number, count, flags, name, function) REGPLUG_FUNCTION(name)
#define REGPLUG_VECTOR_2 REGPLUG_VECTOR
#define REGPLUG_VECTOR_V3 REGPLUG_VECTOR
#define REGPLUG_VECTOR_V4 REGPLUG_VECTOR
#include "vector_functions.inc"
#endif
};

}  // namespace

const void* find_function(std::string_view name) {
  for (const Function& known : kFunctions) {
    if (known.name == name) return known.address;
  }
  return nullptr;
}

}  // namespace regplug::runtime
