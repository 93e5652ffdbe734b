#define REGPLUG_ISA x86_64_v3
#define REGPLUG_EIGEN Eigen_x86_64_v3
#include "kernels.inc"

namespace regplug::runtime {
#define REGPLUG_VECTOR_V3 REGPLUG_BY_EIGEN
#include "vector_functions.inc"
}  // namespace regplug::runtime
