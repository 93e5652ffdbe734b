#define REGPLUG_ISA x86_64_v4
#define REGPLUG_EIGEN Eigen_x86_64_v4
#include "kernels.inc"

namespace regplug::runtime {
#define REGPLUG_VECTOR_V4 REGPLUG_BY_EIGEN
#include "vector_functions.inc"
}  // namespace regplug::runtime
