#include "kernels.h"

namespace regplug::runtime {

namespace baseline {
extern const Kernels kernels;
}
#ifdef __x86_64__
namespace x86_64_v3 {
extern const Kernels kernels;
}
namespace x86_64_v4 {
extern const Kernels kernels;
}
#endif

const Kernels& kernels() {
#ifdef __x86_64__
  static const Kernels* const best = [] {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq")) {
      return &x86_64_v4::kernels;
    }
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &x86_64_v3::kernels : &baseline::kernels;
  }();
  return *best;
#else
  return baseline::kernels;
#endif
}

void multiply(Dtype dtype, const Matrix& out, const Matrix& one, const Matrix& other, const Matrix& bias, double alpha,
              double beta) {
#ifdef REGPLUG_CBLAS
  if (multiply_by_cblas(dtype, out, one, other, bias, alpha, beta)) return;
#endif
  kernels().multiply(dtype, out, one, other, bias, alpha, beta);
}

}  // namespace regplug::runtime
