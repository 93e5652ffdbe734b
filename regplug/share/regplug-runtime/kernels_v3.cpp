#define REGPLUG_ISA x86_64_v3
#define REGPLUG_EIGEN Eigen_x86_64_v3
#include "kernels.inc"
