// The mathematics of the runtime, compiled once for each instruction set; `kernels()` gives those for this CPU.
#pragma once

#include <cstdint>

#include "regplug/dtype.h"

namespace regplug::runtime {

// A matrix in memory with any strides, in items.
struct Matrix {
  char* data;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t row_stride;
  std::int64_t column_stride;
};

// One head of attention: queries [L, E], keys [S, E], values [S, F], output [L, F], and for each query the logarithm of
// its sum of exponentials. `mask` [L, S], of `mask_dtype`, is added to the scores; its data is null without one.
struct Attention {
  Matrix queries;
  Matrix keys;
  Matrix values;
  Matrix output;
  Matrix mask;
  Dtype mask_dtype;
  float* log_sums;
  double* log_sums64;  // for float64
  std::int64_t log_sums_stride;
  double scale;
  bool causal;
};

struct Kernels {
  // out = alpha * one @ other + beta * bias; `bias` has no data without one. `dtype` is one of floats, as below.
  void (*multiply)(Dtype dtype, const Matrix& out, const Matrix& one, const Matrix& other, const Matrix& bias,
                   double alpha, double beta);
  void (*attend)(Dtype dtype, const Attention& head);
};

const Kernels& kernels();

// out = alpha * one @ other + beta * bias, by the CBLAS library if the build has one, else by the kernels.
void multiply(Dtype dtype, const Matrix& out, const Matrix& one, const Matrix& other, const Matrix& bias, double alpha,
              double beta);

// False for what the library cannot compute.
bool multiply_by_cblas(Dtype dtype, const Matrix& out, const Matrix& one, const Matrix& other, const Matrix& bias,
                       double alpha, double beta);

}  // namespace regplug::runtime
