// Matrix products by a CBLAS library, which REGPLUG_RUNTIME_CBLAS chooses. Eigen computes what it has no function for.
#include <cblas.h>

#include <cstdint>
#include <limits>

#include "kernels.h"

namespace regplug::runtime {
namespace {

struct Operand {
  CBLAS_TRANSPOSE order;
  int stride;
};

// How CBLAS reads a matrix as rows: as it is, or transposed. The stride is 0 for one that it cannot read.
Operand operand_of(const Matrix& matrix) {
  const auto known = [](std::int64_t stride, std::int64_t width) {
    const bool fits = stride >= width && stride <= std::numeric_limits<int>::max();
    return fits ? static_cast<int>(stride) : 0;
  };
  if (matrix.column_stride == 1) return {CblasNoTrans, known(matrix.row_stride, matrix.columns)};
  if (matrix.row_stride == 1) return {CblasTrans, known(matrix.column_stride, matrix.rows)};
  return {CblasNoTrans, 0};
}

void add_product(int m, int n, int k, float alpha, const Matrix& one, Operand left, const Matrix& other, Operand right,
                 const Matrix& out, int stride) {
  cblas_sgemm(CblasRowMajor, left.order, right.order, m, n, k, alpha, reinterpret_cast<const float*>(one.data),
              left.stride, reinterpret_cast<const float*>(other.data), right.stride, 1,
              reinterpret_cast<float*>(out.data), stride);
}

void add_product(int m, int n, int k, double alpha, const Matrix& one, Operand left, const Matrix& other, Operand right,
                 const Matrix& out, int stride) {
  cblas_dgemm(CblasRowMajor, left.order, right.order, m, n, k, alpha, reinterpret_cast<const double*>(one.data),
              left.stride, reinterpret_cast<const double*>(other.data), right.stride, 1,
              reinterpret_cast<double*>(out.data), stride);
}

template <typename Number>
bool multiply_as(const Matrix& out, const Matrix& one, const Matrix& other, const Matrix& bias, double alpha,
                 double beta) {
  constexpr std::int64_t most = std::numeric_limits<int>::max();
  const Operand target = operand_of(out);
  const Operand left = operand_of(one);
  const Operand right = operand_of(other);
  if (target.stride == 0 || target.order == CblasTrans || left.stride == 0 || right.stride == 0 || out.rows > most ||
      out.columns > most || one.columns > most || out.rows == 0 || out.columns == 0 || one.columns == 0) {
    return false;
  }
  auto* const sums = reinterpret_cast<Number*>(out.data);
  const auto* const added = reinterpret_cast<const Number*>(bias.data);
  for (std::int64_t i = 0; i < out.rows; ++i) {
    for (std::int64_t j = 0; j < out.columns; ++j) {
      sums[i * out.row_stride + j] =
          added == nullptr
              ? Number{0}
              : static_cast<Number>(beta) * added[i * bias.row_stride + j * bias.column_stride];
    }
  }
  add_product(static_cast<int>(out.rows), static_cast<int>(out.columns), static_cast<int>(one.columns),
              static_cast<Number>(alpha), one, left, other, right, out, target.stride);
  return true;
}

}  // namespace

bool multiply_by_cblas(Dtype dtype, const Matrix& out, const Matrix& one, const Matrix& other, const Matrix& bias,
                       double alpha, double beta) {
  if (dtype == Dtype::float32) return multiply_as<float>(out, one, other, bias, alpha, beta);
  return dtype == Dtype::float64 && multiply_as<double>(out, one, other, bias, alpha, beta);
}

}  // namespace regplug::runtime
