#define REGPLUG_ISA x86_64_v4
#define REGPLUG_EIGEN Eigen_x86_64_v4
#include "kernels.inc"
