// SLEEF's vector functions by their names, which vectorized programs call. Each item goes through the C library, except in
// those that Eigen computes: see kernels.inc.
#include "functions.h"

#ifdef __x86_64__
#include <immintrin.h>

#include <cmath>

namespace regplug::runtime {

#define REGPLUG_VECTOR(vector, number, count, flags, name, function)                     \
  __attribute__((target(flags))) vector name(vector given) {                             \
    alignas(64) number items[count];                                                     \
    __builtin_memcpy(items, &given, sizeof items);                                       \
    for (number& item : items) item = static_cast<number>(std::function(item));               \
    __builtin_memcpy(&given, items, sizeof items);                                       \
    return given;                                                                        \
  }
#define REGPLUG_VECTOR_2(vector, number, count, flags, name, function)                   \
  __attribute__((target(flags))) vector name(vector given, vector other) {               \
    alignas(64) number items[count];                                                     \
    alignas(64) number others[count];                                                    \
    __builtin_memcpy(items, &given, sizeof items);                                       \
    __builtin_memcpy(others, &other, sizeof others);                                     \
    for (int i = 0; i < count; ++i) items[i] = static_cast<number>(std::function(items[i], others[i])); \
    __builtin_memcpy(&given, items, sizeof items);                                       \
    return given;                                                                        \
  }
#include "vector_functions.inc"

}  // namespace regplug::runtime
#endif
