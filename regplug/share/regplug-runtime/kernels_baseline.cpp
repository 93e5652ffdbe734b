#define REGPLUG_ISA baseline
#define REGPLUG_EIGEN Eigen_baseline
#include "kernels.inc"
