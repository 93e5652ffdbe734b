// What Python tests call: the functions of the runtime by name, those of vectors over arrays, its last error, and the
// binding of a library.
#include <regplug/detail/runtime_shim.h>

#include <cstddef>
#include <cstdio>
#include <exception>
#include <string>

#ifdef __x86_64__
#include <immintrin.h>

// `arrays` are one or two inputs and an output, each of `count` vectors.
#define REGPLUG_APPLY(vector, flags)                                                                            \
  __attribute__((target(flags))) static void apply_##vector(const void* function, void* const* arrays, bool two, \
                                                            std::size_t count) {                                \
    const std::size_t items = sizeof(vector);                                                                   \
    for (std::size_t i = 0; i < count; ++i) {                                                                   \
      const auto at = [&](int which) { return static_cast<char*>(arrays[which]) + i * items; };                 \
      vector one, other;                                                                                        \
      __builtin_memcpy(&one, at(0), items);                                                                     \
      if (two) {                                                                                                \
        __builtin_memcpy(&other, at(1), items);                                                                 \
        one = reinterpret_cast<vector (*)(vector, vector)>(const_cast<void*>(function))(one, other);            \
      } else {                                                                                                  \
        one = reinterpret_cast<vector (*)(vector)>(const_cast<void*>(function))(one);                           \
      }                                                                                                         \
      __builtin_memcpy(at(two ? 2 : 1), &one, items);                                                           \
    }                                                                                                           \
  }
REGPLUG_APPLY(__m256, "avx2")
REGPLUG_APPLY(__m256d, "avx2")
REGPLUG_APPLY(__m512, "avx512f")
REGPLUG_APPLY(__m512d, "avx512f")
#endif

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

#ifdef __x86_64__
// One of SLEEF's functions over `count` vectors of `bytes` bytes.
__attribute__((visibility("default"))) void runtime_apply(const char* name, int doubles, int bytes, void* const* arrays,
                                                          int two, std::size_t count) {
  const void* const function = regplug::runtime::find_function(name);
  const auto apply = bytes == 32 ? (doubles ? apply___m256d : apply___m256) : (doubles ? apply___m512d : apply___m512);
  apply(function, arrays, two != 0, count);
}
#endif
}
