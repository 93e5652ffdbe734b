// A fuzz target: the functions that programs call, with any arguments. An input is a list of calls. Each call returns 0
// and tensors whose items can all be read, or 1 and a reason. Tensors are in blocks of exactly their size, so that
// AddressSanitizer detects each access outside. With -DCORPUS it is a program, `fuzz_shim SEED COUNT`, that tries as
// many random inputs and prints how often each function refused and did what it says, for compilers without a fuzzer;
// limit its memory, because some calls ask for much.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "functions.h"
#include "fuzz_input.h"
#include "regplug/dtype.h"
#include "tensor.h"

namespace {

namespace runtime = regplug::runtime;
using Code = AOTITorchError;
using Handle = AtenTensorHandle;
using fuzz::hold;
using fuzz::kLargest;
using fuzz::Numbers;
using fuzz::Wide;

constexpr unsigned kSeldom = 24;
constexpr std::int64_t kMaxBytes = 1 << 14;  // of a tensor that is made here
constexpr std::int64_t kMaxWork = 1 << 16;   // sizes may be huge where strides are 0
constexpr std::int64_t kMany = 1LL << 41;

volatile char last_read;
std::map<std::string, std::array<std::int64_t, 2>> outcomes;  // by function and code

struct Delete {
  void operator()(Handle handle) const { hold(runtime::aoti_torch_delete_tensor_object(handle) == 0, "it is deleted"); }
};

// The bytes that a tensor needs, or -1 if there is no such tensor.
Wide needed(const Numbers& sizes, const Numbers& strides, std::int64_t offset, std::int32_t dtype) {
  if (dtype < 0 || dtype > 9 || offset < 0 || sizes.size() > 8) return -1;
  Wide last = offset;
  bool empty = false;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] < 0 || strides[i] < 0) return -1;
    empty = empty || sizes[i] == 0;
    last = std::min(last + static_cast<Wide>(std::max<std::int64_t>(sizes[i], 1) - 1) * strides[i], Wide{1} << 70);
  }
  const auto item = static_cast<Wide>(regplug::item_size(static_cast<regplug::Dtype>(dtype)));
  return (empty ? offset : last + 1) * item;
}

// Whether sizes and strides are so large that a tensor may be refused even if it has no items, or few places in memory.
bool are_huge(const Numbers& sizes, const Numbers& strides) {
  Wide items = 1;
  Wide last = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const Wide size = std::max<std::int64_t>(sizes[i], 1);
    items = std::min<Wide>(items * size, kLargest);
    last = std::min<Wide>(last + (size - 1) * std::max<std::int64_t>(strides[i], 0), kLargest);
  }
  return std::max(items, last) >= (1LL << 56);
}

// Or kMany, if it is larger: the product of three such numbers does not overflow.
Wide product(const Numbers& sizes) {
  Wide all = 1;
  for (const std::int64_t size : sizes) all = std::min<Wide>(all * std::max<std::int64_t>(size, 1), kMany);
  return all;
}

class Calls {
 public:
  explicit Calls(fuzz::Input input) : input_(input) {}

  void run() {
    for (int i = 0; i < 24 && !input_.empty(); ++i) {
      switch (input_.upto(9)) {
        case 0: tensor(some_sizes()); break;
        case 1: empty(); break;
        case 2: view(); break;
        case 3: copies(); break;
        case 4: product_of_matrices(false); break;
        case 5: product_of_matrices(true); break;
        case 6: sum_and_product(); break;
        case 7: attention(); break;
        case 8: convolution(); break;
        default: inspect(some_handle()); break;
      }
    }
  }

 private:
  // ---- arguments

  Numbers some_sizes() {
    Numbers sizes(static_cast<std::size_t>(input_.upto(5)));
    for (std::int64_t& size : sizes) size = input_.upto(4);
    return sizes;
  }

  // Strides in C order of the dimensions in any order, perhaps with room between items or with steps of 0.
  Numbers some_strides(const Numbers& sizes) {
    Numbers strides(sizes.size());
    Numbers order(sizes.size());
    std::iota(order.rbegin(), order.rend(), 0);
    if (input_.one_in(3) && order.size() > 1) std::swap(order[0], order[input_.byte() % order.size()]);
    if (input_.one_in(3)) std::reverse(order.begin(), order.end());
    Wide next = input_.one_in(4) ? 2 : 1;
    for (const std::int64_t i : order) {
      const auto at = static_cast<std::size_t>(i);
      strides[at] = input_.one_in(12) ? 0 : input_.perhaps(static_cast<std::int64_t>(next));
      next = std::min<Wide>(next * std::max<std::int64_t>(sizes[at], 1), kLargest);
    }
    return strides;
  }

  void spoil(Numbers& sizes) {
    for (std::int64_t& size : sizes) size = input_.one_in(24) ? input_.upto(4) : input_.perhaps(size);
    if (input_.one_in(24)) sizes.resize(input_.byte() % 11, 1);
  }

  std::int32_t some_dtype() {
    const std::int32_t dtypes[] = {1, 0, 2, 3, 4, 9, 7, 1};
    return input_.perhaps_32(dtypes[input_.byte() % 8]);
  }

  template <typename Number>
  Number* perhaps_null(Number* pointer) {
    return input_.one_in(48) ? nullptr : pointer;
  }

  Handle some_handle() {
    if (kept_.empty() || input_.one_in(24)) return nullptr;
    return kept_[input_.byte() % kept_.size()].get();
  }

  // A tensor of these sizes and of the dtype of this call, or another one, or null.
  Handle near(Numbers sizes) {
    if (input_.one_in(24)) return some_handle();
    spoil(sizes);
    return tensor(sizes);
  }

  // ---- what every call must keep to

  void judge(const char* function, Code code, std::initializer_list<Handle> made) {
    hold(code == 0 || code == 1, "the code is 0 or 1");
    ++outcomes[function][static_cast<std::size_t>(code)];
    for (const Handle one : made) {
      hold((one != nullptr) == (code == 0), "there is a tensor if and only if the code is 0");
      if (one == nullptr) continue;
      kept_.emplace_back(one);
      inspect(one);
    }
    const std::string said = runtime::shim_error();
    hold(code == 0 || (!said.empty() && said.size() < 100), "there is a reason");
  }

  // Reads every item.
  void inspect(Handle tensor) {
    std::int64_t rank = 0;
    std::int64_t offset = 0;
    std::int64_t size = 0;
    std::int32_t dtype = 0;
    std::int32_t other = 0;
    std::int64_t* sizes = nullptr;
    std::int64_t* strides = nullptr;
    void* data = nullptr;
    const Code wanted = tensor == nullptr ? 1 : 0;
    const auto same = [&](Code code) { hold(code == wanted, "all tensors but null can be inspected"); };
    same(runtime::aoti_torch_get_dim(tensor, &rank));
    same(runtime::aoti_torch_get_sizes(tensor, &sizes));
    same(runtime::aoti_torch_get_strides(tensor, &strides));
    same(runtime::aoti_torch_get_dtype(tensor, &dtype));
    same(runtime::aoti_torch_get_device_type(tensor, &other));
    same(runtime::aoti_torch_get_layout(tensor, &other));
    same(runtime::aoti_torch_get_data_ptr(tensor, &data));
    same(runtime::aoti_torch_get_storage_offset(tensor, &offset));
    same(runtime::aoti_torch_get_storage_size(tensor, &size));
    hold(runtime::aoti_torch_get_sizes(tensor, nullptr) == 1, "null for a result is refused");
    if (tensor == nullptr) return;
    const auto length = static_cast<std::size_t>(rank);
    hold(length <= 8, "a tensor has at most eight sizes");
    const Numbers whole(sizes, sizes + length);
    const Wide bytes = needed(whole, Numbers(strides, strides + length), offset, dtype);
    hold(bytes >= 0 && bytes <= size, "a tensor is inside its memory");
    if (product(whole) > kMaxWork || std::count(whole.begin(), whole.end(), 0) != 0) return;
    const auto item = static_cast<std::int64_t>(regplug::item_size(static_cast<regplug::Dtype>(dtype)));
    read(static_cast<const char*>(data), item, length, sizes, strides);
  }

  static void read(const char* data, std::int64_t item, std::size_t rank, const std::int64_t* sizes,
                   const std::int64_t* strides) {
    if (rank == 0) {
      for (std::int64_t i = 0; i < item; ++i) last_read = data[i];
      return;
    }
    for (std::int64_t i = 0; i < *sizes; ++i) read(data + i * *strides * item, item, rank - 1, sizes + 1, strides + 1);
  }

  // ---- calls

  Handle tensor(const Numbers& sizes) {
    const Numbers strides = some_strides(sizes);
    const std::int64_t offset = input_.one_in(12) ? input_.perhaps(input_.upto(3)) : 0;
    const std::int32_t dtype = input_.one_in(24) ? some_dtype() : dtype_;
    const Wide bytes = needed(sizes, strides, offset, dtype);
    if (bytes > kMaxBytes && bytes < (Wide{1} << 60)) return nullptr;  // valid, but there is no such memory
    const bool possible = bytes >= 0 && bytes <= kMaxBytes;
    // the fuzzer limits memory, so that some of these are null
    blocks_.emplace_back(std::malloc(possible ? static_cast<std::size_t>(bytes) : 1), &std::free);
    void* const data = blocks_.back().get();
    if (possible && bytes > 0) fill(static_cast<char*>(data), static_cast<std::size_t>(bytes), dtype);
    const auto length = static_cast<std::int64_t>(sizes.size());
    std::int64_t rank = input_.one_in(48) ? input_.any() : length;
    if (rank >= 0 && rank <= 8) rank = length;  // there are no more sizes to read
    const std::int64_t* const sizes_given = perhaps_null(sizes.data());
    const std::int64_t* const strides_given = perhaps_null(strides.data());
    const bool whole = rank == length &&
                       (rank == 0 || (sizes_given != nullptr && strides_given != nullptr));
    Handle made = nullptr;
    Handle* const place = perhaps_null(&made);
    void* const memory = perhaps_null(data);
    const Code code = input_.one_in(2) ? runtime::aoti_torch_create_tensor_from_blob(
                                             memory, rank, sizes_given, strides_given, offset, dtype, 0, 0, place)
                                       : runtime::aoti_torch_create_tensor_from_blob_v2(
                                             memory, rank, sizes_given, strides_given, offset, dtype, 0, 0, place, 0,
                                             nullptr, 0);
    if (code == 0) hold(possible && whole && place != nullptr, "only a tensor in memory is made");
    if (code == 0) hold(memory != nullptr || bytes == 0, "a tensor has memory");
    if (code != 0) hold(!possible || !whole || !place || !memory || are_huge(sizes, strides), "a tensor is made");
    judge("create_tensor_from_blob", code, {made});
    return made;
  }

  void fill(char* data, std::size_t size, std::int32_t dtype) {
    const std::uint8_t byte = input_.byte();
    std::memset(data, 0, size);
    const float number = byte < 200 ? static_cast<float>(byte) / 64 - 1 : std::numeric_limits<float>::infinity();
    if (dtype == 1) {
      for (std::size_t i = 0; i + 4 <= size; i += 4) std::memcpy(data + i, &number, 4);
    } else if (dtype != 9) {
      std::memset(data, byte, size);
    }
  }

  void empty() {
    Numbers sizes = some_sizes();
    spoil(sizes);
    const Numbers strides = some_strides(sizes);
    const auto rank = static_cast<std::int64_t>(sizes.size());
    Handle made = nullptr;
    Handle* const place = perhaps_null(&made);
    const std::int32_t dtype = some_dtype();
    const Code code = runtime::aoti_torch_empty_strided(rank, perhaps_null(sizes.data()), perhaps_null(strides.data()),
                                                        dtype, 0, 0, place);
    if (code == 0) {
      const Wide bytes = needed(sizes, strides, 0, dtype);
      hold(bytes >= 0, "only a tensor in memory is made");
      void* data = nullptr;
      runtime::aoti_torch_get_data_ptr(made, &data);
      std::memset(data, input_.byte() & 1, static_cast<std::size_t>(bytes));
    }
    judge("empty_strided", code, {made});
  }

  void view() {
    const Handle from = some_handle();
    Numbers sizes = some_sizes();
    spoil(sizes);
    const Numbers strides = some_strides(sizes);
    const std::int64_t offset = input_.one_in(2) ? input_.any() : input_.upto(8) - 2;
    Handle made = nullptr;
    const Code code = runtime::aoti_torch__reinterpret_tensor(from, static_cast<std::int64_t>(sizes.size()),
                                                              perhaps_null(sizes.data()), perhaps_null(strides.data()),
                                                              offset, perhaps_null(&made));
    judge("_reinterpret_tensor", code, {made});
  }

  void copies() {
    const Handle from = some_handle();
    Handle made = nullptr;
    Code code = runtime::aoti_torch_new_tensor_handle(from, perhaps_null(&made));
    judge("new_tensor_handle", code, {made});
    if (made != nullptr && input_.one_in(3)) kept_.pop_back();
    made = nullptr;
    const Wide items = product(sizes_of(from));
    if (items > kMaxWork && items < (1LL << 40)) return;  // enough memory, but slow
    code = runtime::aoti_torch_clone(from, perhaps_null(&made));
    judge("clone", code, {made});
  }

  static Numbers sizes_of(Handle tensor) {
    return tensor == nullptr ? Numbers{} : Numbers(tensor->sizes, tensor->sizes + tensor->rank);
  }

  void product_of_matrices(bool batched) {
    dtype_ = some_dtype();
    const std::int64_t rows = input_.upto(9);
    const std::int64_t depth = input_.upto(9);
    const std::int64_t columns = input_.upto(9);
    const auto sizes = [&](std::int64_t first, std::int64_t second) {
      return batched ? Numbers{3, first, second} : Numbers{first, second};
    };
    const Handle one = near(sizes(rows, depth));
    const Handle other = near(sizes(depth, columns));
    const Handle out = near(sizes(rows, columns));
    if (is_too_long(one, other)) return;
    if (batched) {
      judge("bmm_out", runtime::aoti_torch_cpu_bmm_out(out, one, other), {});
    } else {
      judge("mm_out", runtime::aoti_torch_cpu_mm_out(out, one, other), {});
    }
  }

  void sum_and_product() {
    dtype_ = some_dtype();
    const std::int64_t rows = input_.upto(9);
    const std::int64_t depth = input_.upto(9);
    const std::int64_t columns = input_.upto(9);
    const bool batched = input_.byte() % 2 != 0;
    const auto sizes = [&](std::int64_t first, std::int64_t second) {
      return batched ? Numbers{3, first, second} : Numbers{first, second};
    };
    const Handle one = near(sizes(rows, depth));
    const Handle other = near(sizes(depth, columns));
    const Handle out = near(sizes(rows, columns));
    const Numbers biases[] = {{columns}, {1, columns}, {rows, 1}, sizes(rows, columns)};
    const Handle bias = near(biases[input_.byte() % 4]);
    if (is_too_long(one, other)) return;
    const double beta = input_.byte() % 3;
    if (batched) {
      judge("baddbmm_out", runtime::aoti_torch_cpu_baddbmm_out(out, bias, one, other, beta, input_.byte() % 3), {});
    } else {
      judge("addmm_out", runtime::aoti_torch_cpu_addmm_out(out, bias, one, other, beta, input_.byte() % 3), {});
    }
  }

  static bool is_too_long(Handle one, Handle other) {
    const Numbers columns = sizes_of(other);
    return !columns.empty() && product(sizes_of(one)) * std::max<std::int64_t>(columns.back(), 1) > kMaxWork;
  }

  void attention() {
    dtype_ = some_dtype();
    const std::int64_t batch = input_.upto(2);
    const std::int64_t key_heads = input_.upto(2);
    const std::int64_t heads = key_heads * input_.upto(2);
    const std::int64_t length = input_.one_in(6) ? 60 + input_.upto(80) : input_.upto(5);
    const std::int64_t keys = input_.upto(5);
    const std::int64_t width = input_.upto(5);
    const Handle query = near({batch, heads, length, width});
    const Handle key = near({batch, key_heads, keys, width});
    const Handle value = near({batch, key_heads, keys, width});
    const Numbers masks[] = {{length, keys}, {1, 1, length, keys}, {batch, heads, length, keys}, {1, keys}, {}};
    Handle mask = input_.one_in(2) ? near(masks[input_.byte() % 5]) : nullptr;
    double scale = input_.byte() % 4;
    const Wide values = sizes_of(value).empty() ? 1 : product({sizes_of(value).back()});
    if (product(sizes_of(query)) * product(sizes_of(key)) * values > 64 * kMaxWork) return;
    Handle output = nullptr;
    Handle sums = nullptr;
    const Code code = runtime::aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu(
        query, key, value, input_.one_in(24) ? 0.5 : 0, input_.byte() % 2, input_.one_in(2) ? nullptr : &mask,
        input_.one_in(2) ? nullptr : &scale, perhaps_null(&output), perhaps_null(&sums));
    judge("attention", code, {output, sums});
  }

  void convolution() {
    dtype_ = some_dtype();
    const auto dimensions = static_cast<std::size_t>(1 + input_.upto(2));
    const std::int64_t groups = 1 + input_.upto(2);
    const std::int64_t inside = input_.upto(3);
    const std::int64_t outside = groups * input_.upto(3);
    Numbers image{input_.upto(2), groups * inside};
    Numbers kernel{outside, inside};
    for (std::size_t d = 0; d < dimensions; ++d) {
      image.push_back(input_.upto(6));
      kernel.push_back(input_.upto(3));
    }
    const Handle pixels = near(image);
    const Handle weight = near(kernel);
    Handle bias = input_.one_in(2) ? near({outside}) : nullptr;
    Numbers settings[4];
    std::int64_t counts[4];
    const std::int64_t* places[4];
    for (int i = 0; i < 4; ++i) {
      settings[i].resize(input_.one_in(8) ? input_.byte() % 4 : dimensions);
      for (std::int64_t& number : settings[i]) number = input_.perhaps(input_.upto(2) + (i == 0 || i == 2 ? 1 : 0));
      places[i] = perhaps_null(settings[i].data());
      const auto count = static_cast<std::int64_t>(settings[i].size());
      counts[i] = input_.one_in(48) ? std::min<std::int64_t>(input_.any(), -1) : count;
    }
    const Numbers first = sizes_of(pixels);
    if (!first.empty() && std::max<Wide>(first[0], 1) * product(sizes_of(weight)) > 256) return;
    Handle made = nullptr;
    const Code code = runtime::aoti_torch_cpu_convolution(
        pixels, weight, input_.one_in(2) ? nullptr : &bias, places[0], counts[0], places[1], counts[1], places[2],
        counts[2], input_.one_in(24), places[3], counts[3], input_.perhaps(groups), perhaps_null(&made));
    judge("convolution", code, {made});
  }

  fuzz::Input input_;
  std::int32_t dtype_ = 1;
  std::vector<std::unique_ptr<void, void (*)(void*)>> blocks_;
  std::vector<std::unique_ptr<AtenTensorOpaque, Delete>> kept_;  // destroyed before their blocks
};

}  // namespace

#ifdef CORPUS
int main(int, char** argv) {
  std::mt19937_64 draw(std::strtoull(argv[1], nullptr, 10));
  for (std::int64_t i = std::strtoll(argv[2], nullptr, 10); i-- > 0;) {
    std::vector<std::uint8_t> bytes(512);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(draw());
    Calls({bytes.data(), bytes.size(), kSeldom}).run();
  }
  for (const auto& [function, codes] : outcomes) std::cout << function << " " << codes[1] << " " << codes[0] << "\n";
}
#else
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Calls({data, size, kSeldom}).run();
  return 0;
}
#endif
