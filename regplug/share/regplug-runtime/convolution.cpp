// Convolution as a matrix product: the patches of an image become the columns of a matrix.
#include <algorithm>
#include <cstring>

#include "functions.h"
#include "kernels.h"
#include "tensor.h"

namespace regplug::runtime {
namespace {

constexpr std::int64_t kMaxSpace = 3;  // dimensions besides batch and channels

// One convolution; the sizes of missing dimensions are 1.
struct Geometry {
  std::int64_t dimensions;
  std::int64_t input[kMaxSpace];
  std::int64_t kernel[kMaxSpace];
  std::int64_t output[kMaxSpace];
  std::int64_t stride[kMaxSpace];
  std::int64_t padding[kMaxSpace];
  std::int64_t dilation[kMaxSpace];
  std::int64_t positions;  // of the output
  std::int64_t taps;       // of the kernel
};

// Fills in one number for each dimension of space: the given ones, or the one that all share, or the least if none is
// given. False when there are more or fewer, or one is out of range.
bool fill(std::int64_t* numbers, const std::int64_t* given, std::int64_t count, std::int64_t dimensions,
          std::int64_t least) {
  std::fill_n(numbers, kMaxSpace, least);
  if (count == 0) return true;
  if ((count != 1 && count != dimensions) || given == nullptr) return false;
  for (std::int64_t d = 0; d < dimensions; ++d) {
    numbers[d] = given[count == 1 ? 0 : d];
    if (numbers[d] < least || numbers[d] >= kMost) return false;
  }
  return true;
}

// Whether torch takes the strides of a tensor for channels-last order (c10/core/MemoryFormat.h): the result of a
// convolution has that order then.
bool is_channels_last(const AtenTensorOpaque& tensor) {
  if (tensor.rank < 4 || tensor.strides[1] == 0) return false;
  std::int64_t least = 0;
  // the channel, then the dimensions of space from the last to the first, then the batch
  for (std::int64_t i = 0; i < tensor.rank; ++i) {
    const std::int64_t d = i == 0 ? 1 : i + 1 == tensor.rank ? 0 : tensor.rank - i;
    if (tensor.sizes[d] == 0 || tensor.strides[d] < least || (d == 0 && least == tensor.strides[1])) return false;
    least = tensor.strides[d] * std::max<std::int64_t>(tensor.sizes[d], 1);
  }
  return true;
}

// Row (c, tap) of `columns` is the input under that tap, for every position of the output.
void unfold(const Geometry& g, const AtenTensorOpaque& input, std::int64_t sample, std::int64_t first_channel,
            std::int64_t channels, char* columns) {
  const auto item = static_cast<std::int64_t>(item_size(input.dtype));
  std::int64_t space[kMaxSpace];
  for (std::int64_t d = 0; d < kMaxSpace; ++d) space[d] = d < g.dimensions ? input.strides[2 + d] : 0;
  for (std::int64_t c = 0; c < channels; ++c) {
    const char* const plane =
        input.data() + (sample * input.strides[0] + (first_channel + c) * input.strides[1]) * item;
    for (std::int64_t tap = 0; tap < g.taps; ++tap) {
      std::int64_t at[kMaxSpace];
      std::int64_t rest = tap;
      for (std::int64_t d = kMaxSpace; d-- > 0;) {
        at[d] = rest % g.kernel[d] * g.dilation[d] - g.padding[d];
        rest /= g.kernel[d];
      }
      for (std::int64_t x = 0; x < g.output[0]; ++x) {
        const std::int64_t ix = x * g.stride[0] + at[0];
        for (std::int64_t y = 0; y < g.output[1]; ++y) {
          const std::int64_t iy = y * g.stride[1] + at[1];
          for (std::int64_t z = 0; z < g.output[2]; ++z, columns += item) {
            const std::int64_t iz = z * g.stride[2] + at[2];
            const bool inside = ix >= 0 && ix < g.input[0] && iy >= 0 && iy < g.input[1] && iz >= 0 && iz < g.input[2];
            if (inside) {
              std::memcpy(columns, plane + (ix * space[0] + iy * space[1] + iz * space[2]) * item,
                          static_cast<std::size_t>(item));
            } else {
              std::memset(columns, 0, static_cast<std::size_t>(item));
            }
          }
        }
      }
    }
  }
}

}  // namespace

AOTITorchError aoti_torch_cpu_convolution(AtenTensorHandle input, AtenTensorHandle weight, AtenTensorHandle* bias,
                                          const std::int64_t* stride, std::int64_t num_strides,
                                          const std::int64_t* padding, std::int64_t num_paddings,
                                          const std::int64_t* dilation, std::int64_t num_dilations,
                                          std::int32_t transposed, const std::int64_t*, std::int64_t,
                                          std::int64_t groups, AtenTensorHandle* made) {
  if (has_null({input, weight, made})) return fail(kNull);
  const std::int64_t dimensions = input->rank - 2;
  if (transposed != 0) {
    return fail("convolution: expected one that is not transposed, got one that is; a program with it needs libtorch");
  }
  if (dimensions < 1 || dimensions > kMaxSpace || weight->rank != input->rank || groups < 1 ||
      weight->dtype != input->dtype || input->sizes[1] != times(weight->sizes[1], groups) ||
      weight->sizes[0] % groups != 0) {
    return fail("convolution: expected an input [B, C, ...] and a weight that fit, got others");
  }
  const std::int64_t samples = input->sizes[0];
  const std::int64_t out_channels = weight->sizes[0];
  const AtenTensorHandle added = bias == nullptr ? nullptr : *bias;
  if (added != nullptr && (added->rank != 1 || added->sizes[0] != out_channels || added->dtype != input->dtype)) {
    return fail("convolution: expected a bias that fits the weight, got another");
  }
  if (!is_float(input->dtype)) return fail("convolution: expected floats, got another dtype");
  Geometry g{};
  if (!fill(g.stride, stride, num_strides, dimensions, 1) || !fill(g.padding, padding, num_paddings, dimensions, 0) ||
      !fill(g.dilation, dilation, num_dilations, dimensions, 1)) {
    return fail("convolution: expected a stride, padding and dilation for each dimension, got others");
  }
  g.dimensions = dimensions;
  g.positions = g.taps = 1;
  std::int64_t sizes[kMaxRank] = {samples, out_channels};
  for (std::int64_t d = 0; d < kMaxSpace; ++d) {
    const bool used = d < dimensions;
    g.input[d] = used ? input->sizes[2 + d] : 1;
    g.kernel[d] = used ? weight->sizes[2 + d] : 1;
    const std::int64_t reach = times(g.dilation[d], g.kernel[d] - 1) + 1;
    const std::int64_t room = g.input[d] + 2 * g.padding[d];
    if (g.kernel[d] < 1 || room < reach) {
      return fail("convolution: expected an image of at least the kernel's size, got a smaller one");
    }
    g.output[d] = (room - reach) / g.stride[d] + 1;
    g.positions = times(g.positions, g.output[d]);
    g.taps = times(g.taps, g.kernel[d]);
    if (used) sizes[2 + d] = g.output[d];
  }
  std::int64_t strides[kMaxRank];
  const bool channels_last = is_channels_last(*input) || is_channels_last(*weight);
  strides[1] = channels_last ? 1 : g.positions;
  std::int64_t next = channels_last ? out_channels : 1;
  for (std::int64_t i = input->rank; i-- > 2;) {
    strides[i] = next;
    next = times(next, sizes[i]);
  }
  strides[0] = times(out_channels, g.positions);

  const auto item = static_cast<std::int64_t>(item_size(input->dtype));
  const std::int64_t in_group = weight->sizes[1];
  const std::int64_t out_group = out_channels / groups;
  const std::int64_t depth = times(in_group, g.taps);
  const std::int64_t unfolded_sizes[] = {depth, g.positions};
  const std::int64_t unfolded_strides[] = {g.positions, 1};
  Owned output = make_tensor(input->dtype, input->rank, sizes, strides);
  if (output == nullptr) return 1;
  const Owned columns = make_tensor(input->dtype, 2, unfolded_sizes, unfolded_strides);
  const Owned flat = clone_contiguous(*weight);  // a row for each output channel
  if (columns == nullptr || flat == nullptr) return 1;
  const auto convolve = [&](std::int64_t n, std::int64_t group) {
    unfold(g, *input, n, group * in_group, in_group, columns->data());
    const std::int64_t channel = group * out_group;
    const Matrix out{output->data() + (n * strides[0] + channel * strides[1]) * item, out_group, g.positions,
                     strides[1], channels_last ? out_channels : 1};
    const Matrix rows{flat->data() + channel * depth * item, out_group, depth, depth, 1};
    const Matrix right{columns->data(), depth, g.positions, g.positions, 1};
    Matrix biases{};
    if (added != nullptr) {
      const std::int64_t step = added->strides[0];
      biases = {added->data() + channel * step * item, out_group, g.positions, step, 0};
    }
    multiply(input->dtype, out, rows, right, biases, 1, 1);
  };
  return guarded([&] {
    for (std::int64_t n = 0; n < samples && !output->is_empty(); ++n) {
      for (std::int64_t group = 0; group < groups; ++group) convolve(n, group);
    }
    *made = output.release();
    return 0;
  });
}

}  // namespace regplug::runtime
