// The operations of torch that programs call, each with the layout of its result as torch gives it.
#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "functions.h"
#include "kernels.h"
#include "tensor.h"

namespace regplug::runtime {
namespace {

// The matrix of the last two dimensions; `batch` counts along the first.
Matrix matrix_of(AtenTensorHandle tensor, std::int64_t batch = 0) {
  const std::int64_t row = tensor->rank - 2;
  const std::int64_t skipped = tensor->rank > 2 ? batch * tensor->strides[0] : 0;
  return {tensor->data() + skipped * static_cast<std::int64_t>(item_size(tensor->dtype)), tensor->sizes[row],
          tensor->sizes[row + 1], tensor->strides[row], tensor->strides[row + 1]};
}

// Whether the last dimensions of a tensor are these sizes, or 1.
bool repeats_to(AtenTensorHandle tensor, std::initializer_list<std::int64_t> sizes) {
  const auto rank = static_cast<std::int64_t>(sizes.size());
  if (tensor->rank > rank) return false;
  const std::int64_t* size = sizes.begin() + (rank - tensor->rank);
  for (std::int64_t i = 0; i < tensor->rank; ++i, ++size) {
    if (tensor->sizes[i] != *size && tensor->sizes[i] != 1) return false;
  }
  return true;
}

// The matrix at these places of the first dimensions; sizes of 1 and missing ones are repeated to those of a result.
Matrix repeated(AtenTensorHandle tensor, std::initializer_list<std::int64_t> places, std::int64_t rows,
                std::int64_t columns) {
  const auto stride = [&](std::int64_t from_end) {
    const std::int64_t i = tensor->rank - from_end;
    return i < 0 || tensor->sizes[i] == 1 ? 0 : tensor->strides[i];
  };
  std::int64_t skipped = 0;
  auto from_end = static_cast<std::int64_t>(places.size()) + 2;
  for (const std::int64_t place : places) skipped += place * stride(from_end--);
  return {tensor->data() + skipped * static_cast<std::int64_t>(item_size(tensor->dtype)), rows, columns, stride(2),
          stride(1)};
}

bool same_dtype(std::initializer_list<AtenTensorHandle> tensors) {
  for (const AtenTensorHandle tensor : tensors) {
    if (tensor->dtype != (*tensors.begin())->dtype) return false;
  }
  return true;
}

// out = alpha * one @ other + beta * bias, of tensors of this rank; `bias` may be null.
AOTITorchError multiply_all(AtenTensorHandle out, AtenTensorHandle one, AtenTensorHandle other, std::int64_t rank,
                            AtenTensorHandle bias = nullptr, double alpha = 1, double beta = 0) {
  const std::int64_t last = rank - 1;
  const auto fits = [&] {
    if (out->rank != rank || one->rank != rank || other->rank != rank || !same_dtype({out, one, other})) return false;
    const std::int64_t batch = out->sizes[0];
    const std::int64_t rows = out->sizes[last - 1];
    const std::int64_t columns = out->sizes[last];
    if (one->sizes[last] != other->sizes[last - 1] || one->sizes[last - 1] != rows || other->sizes[last] != columns ||
        (rank == 3 && (one->sizes[0] != batch || other->sizes[0] != batch))) {
      return false;
    }
    if (bias == nullptr) return true;
    return bias->dtype == out->dtype &&
           (rank == 3 ? repeats_to(bias, {batch, rows, columns}) : repeats_to(bias, {rows, columns}));
  };
  if (!fits()) return fail("product: expected matrices of the same dtype that fit, got others");
  if (!is_float(out->dtype)) return fail("product: expected floats, got another dtype");
  if (out->is_empty()) return 0;
  const std::int64_t batches = rank == 3 ? out->sizes[0] : 1;
  return guarded([&] {
    for (std::int64_t i = 0; i < batches; ++i) {
      const Matrix target = matrix_of(out, i);
      // as in torch, a bias times 0 is not read
      const Matrix added = bias == nullptr || beta == 0 ? Matrix{} : repeated(bias, {i}, target.rows, target.columns);
      multiply(out->dtype, target, matrix_of(one, i), matrix_of(other, i), added, alpha, beta);
    }
    return 0;
  });
}

}  // namespace

AOTITorchError aoti_torch_cpu_mm_out(AtenTensorHandle out, AtenTensorHandle one, AtenTensorHandle other) {
  if (has_null({out, one, other})) return fail(kNull);
  return multiply_all(out, one, other, 2);
}

AOTITorchError aoti_torch_cpu_bmm_out(AtenTensorHandle out, AtenTensorHandle one, AtenTensorHandle other) {
  if (has_null({out, one, other})) return fail(kNull);
  return multiply_all(out, one, other, 3);
}

AOTITorchError aoti_torch_cpu_addmm_out(AtenTensorHandle out, AtenTensorHandle bias, AtenTensorHandle one,
                                        AtenTensorHandle other, double beta, double alpha) {
  if (has_null({out, bias, one, other})) return fail(kNull);
  return multiply_all(out, one, other, 2, bias, alpha, beta);
}

AOTITorchError aoti_torch_cpu_baddbmm_out(AtenTensorHandle out, AtenTensorHandle bias, AtenTensorHandle one,
                                          AtenTensorHandle other, double beta, double alpha) {
  if (has_null({out, bias, one, other})) return fail(kNull);
  return multiply_all(out, one, other, 3, bias, alpha, beta);
}

AOTITorchError aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu(
    AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value, double dropout_p, std::int32_t is_causal,
    AtenTensorHandle* attn_mask, double* scale, AtenTensorHandle* made_output, AtenTensorHandle* made_log_sums) {
  if (has_null({query, key, value, made_output, made_log_sums})) return fail(kNull);
  if (query->rank != 4 || key->rank != 4 || value->rank != 4 || !same_dtype({query, key, value}) || dropout_p != 0) {
    return fail("attention: expected queries, keys and values [B, H, L, E] without dropout, got others");
  }
  const std::int64_t batch = query->sizes[0];
  const std::int64_t heads = query->sizes[1];
  const std::int64_t length = query->sizes[2];
  const std::int64_t key_heads = key->sizes[1];  // each serves as many heads of the queries, one after another
  if (key->sizes[0] != batch || value->sizes[0] != batch || value->sizes[1] != key_heads || key_heads < 1 ||
      heads % key_heads != 0 || key->sizes[2] < 1 || key->sizes[2] != value->sizes[2] ||
      key->sizes[3] != query->sizes[3] || value->sizes[3] != query->sizes[3]) {
    return fail("attention: expected keys and values that fit the queries, got others");
  }
  const AtenTensorHandle mask = attn_mask == nullptr ? nullptr : *attn_mask;
  if (mask != nullptr && (!is_float(mask->dtype) || !repeats_to(mask, {batch, heads, length, key->sizes[2]}))) {
    return fail("attention: expected a mask of floats that fits the scores, got another");
  }
  if (!is_float(query->dtype)) return fail("attention: expected floats, got another dtype");
  std::int64_t strides[kMaxRank];
  strides_like(*query, strides);
  const std::int64_t sum_strides[] = {times(length, heads), 1, heads};
  const Dtype work = query->dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32;
  Owned output = make_tensor(query->dtype, 4, query->sizes, strides);
  Owned log_sums = make_tensor(work, 3, query->sizes, sum_strides);
  if (output == nullptr || log_sums == nullptr) return 1;
  const auto head_of = [&](const AtenTensorOpaque& tensor, std::int64_t b, std::int64_t h) {
    const std::int64_t skipped = b * tensor.strides[0] + h * tensor.strides[1];
    return Matrix{tensor.data() + skipped * static_cast<std::int64_t>(item_size(tensor.dtype)), tensor.sizes[2],
                  tensor.sizes[3], tensor.strides[2], tensor.strides[3]};
  };
  const auto attend = [&](std::int64_t b, std::int64_t h) {
    Attention head{};
    head.queries = head_of(*query, b, h);
    const std::int64_t key_head = h / (heads / key_heads);
    head.keys = head_of(*key, b, key_head);
    head.values = head_of(*value, b, key_head);
    head.output = head_of(*output, b, h);
    if (mask != nullptr) {
      head.mask = repeated(mask, {b, h}, length, key->sizes[2]);
      head.mask_dtype = mask->dtype;
    }
    head.log_sums_stride = heads;
    const std::int64_t first = b * length * heads + h;
    head.log_sums = reinterpret_cast<float*>(log_sums->data()) + first;
    head.log_sums64 = reinterpret_cast<double*>(log_sums->data()) + first;
    head.scale = scale != nullptr ? *scale : 1 / std::sqrt(static_cast<double>(query->sizes[3]));
    head.causal = is_causal != 0;
    kernels().attend(query->dtype, head);
  };
  return guarded([&] {
    for (std::int64_t b = 0; b < batch && !log_sums->is_empty(); ++b) {
      for (std::int64_t h = 0; h < heads; ++h) attend(b, h);
    }
    *made_output = output.release();
    *made_log_sums = log_sums.release();
    return 0;
  });
}

}  // namespace regplug::runtime
