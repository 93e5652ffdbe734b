// A fuzz target: calls of a bundle with a mask and vectors, with any names, dtypes, sizes, strides, pointers and values.
// $FUZZ_BUNDLE is the frozen conditioner of format 2. A call returns outputs if and only if its inputs fit, or a reason;
// the outputs do not depend on strides, on the order of the inputs, or on padding. Tensors are in blocks of exactly their
// size, so that AddressSanitizer detects each access outside. With -DCORPUS it is a program, `fuzz_call SEED COUNT`, that
// tries as many random inputs and prints how many calls were refused and served, for compilers without a fuzzer.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <regplug/regplug.h>

#include "fuzz_input.h"
#include "given_tensors.h"

namespace {

using fuzz::Expected;
using fuzz::Given;
using fuzz::hold;
using fuzz::kDtypes;
using fuzz::kInputs;
using fuzz::kNames;
using fuzz::Numbers;
using fuzz::Wide;

constexpr unsigned kSeldom = 96;
constexpr Wide kMaxItems = 1 << 12;  // sizes may be huge where strides are 0
constexpr std::size_t kWidth = 3;    // of each of the four outputs

std::array<std::int64_t, 2> outcomes;  // refused, served

const regplug_bundle* bundle() {
  static const regplug_bundle* const opened = [] {
    const regplug_bundle* made = regplug_open(std::getenv("FUZZ_BUNDLE"), nullptr, 0);
    if (made == nullptr) std::cerr << regplug_last_error() << "\n";
    hold(made != nullptr, "the bundle is opened");
    return made;
  }();
  return opened;
}

// Frees the outputs of a call.
using Outputs = std::unique_ptr<regplug_outputs, void (*)(regplug_outputs*)>;

Outputs call(const std::vector<regplug_tensor>& inputs) {
  return {regplug_run(bundle(), inputs.empty() ? nullptr : inputs.data(), inputs.size()), &regplug_free_outputs};
}

// All numbers of all outputs.
std::vector<float> numbers_of(const regplug_outputs* outputs, std::int64_t batch) {
  std::vector<float> all;
  hold(regplug_num_outputs(outputs) == 4, "there are four outputs");
  for (std::size_t i = 0; i < 4; ++i) {
    regplug_tensor one{};
    hold(regplug_output(outputs, i, &one) == 0, "there is an output");
    hold(one.dtype == REGPLUG_FLOAT32 && one.rank == 2, "an output is a matrix of float32");
    hold(one.sizes[0] == batch && one.sizes[1] == kWidth, "an output has the batch and its width");
    if (batch == 0) continue;
    const auto* const numbers = static_cast<const float*>(one.data);
    all.insert(all.end(), numbers, numbers + static_cast<std::size_t>(batch) * kWidth);
  }
  regplug_tensor none{};
  hold(regplug_output(outputs, 4, &none) == 1, "there is no fifth output");
  return all;
}

class Call {
 public:
  explicit Call(fuzz::Input input) : input_(input) {}

  void run() {
    const std::int64_t batch = input_.upto(3);
    const std::int64_t length = input_.perhaps(input_.one_in(24) ? input_.upto(8) : 6 + input_.upto(5));
    std::array<Given, kInputs> made;
    for (std::size_t i = 0; i < kInputs; ++i) make(made[i], i, batch, length);
    std::vector<const Given*> given;
    for (const Given& one : made) given.push_back(&one);
    std::rotate(given.begin(), given.begin() + input_.upto(3), given.end());
    if (input_.one_in(48)) given.pop_back();
    if (input_.one_in(48)) given.push_back(&made[static_cast<std::size_t>(input_.upto(3))]);
    if (input_.one_in(96)) given.clear();
    const Expected expected(given);
    const bool fit = expected.signatures();
    bool may_overflow = false;
    bool overflows = false;
    for (const Given* one : given) {
      if (fit && (one->items() > kMaxItems || !(one->has_memory || one->overflows))) return;  // there is no such memory
      may_overflow = may_overflow || one->may_overflow;
      overflows = overflows || one->overflows;
    }
    const bool good = fit && !overflows && expected.mask();
    std::vector<regplug_tensor> inputs;
    for (const Given* one : given) inputs.push_back(one->tensor());
    const Outputs outputs = call(inputs);
    ++outcomes[outputs != nullptr];
    if (outputs == nullptr) {
      hold_message(regplug_last_error());
      if (good && !may_overflow) std::cerr << regplug_last_error() << "\n";
      hold(!good || may_overflow, "inputs that fit are served");
    } else {
      hold(good, "only inputs that fit are served");
      check_padding(expected, numbers_of(outputs.get(), expected.batch()));
    }
  }

 private:
  void make(Given& one, std::size_t i, std::int64_t batch, std::int64_t length) {
    one.name = kNames[i];
    one.has_name = !input_.one_in(128);
    if (input_.one_in(128)) one.name = kNames[input_.upto(3)];
    for (int count = input_.one_in(128) ? 4 : 0; count > 0; --count) one.name += static_cast<char>(input_.byte() | 1);
    const std::int64_t dtype = input_.one_in(96) ? input_.upto(10) : kDtypes[i];
    one.dtype = static_cast<std::int32_t>(input_.perhaps(dtype));
    const Numbers sizes[kInputs] = {{batch, length, 6}, {batch, length}, {batch, 3}, {batch, 1}};
    one.sizes = sizes[i];
    for (std::int64_t& size : one.sizes) size = input_.one_in(96) ? input_.upto(8) : input_.perhaps(size);
    if (input_.one_in(96)) one.sizes.resize(input_.byte() % 66, 1);
    one.has_sizes = !input_.one_in(128);
    set_c_order(one);
    one.in_c_order = !input_.one_in(2);
    if (!one.in_c_order) set_strides(one);
    allocate(one, input_.one_in(8));
    fill(one);
    if (input_.one_in(128)) one.data = nullptr;
  }

  // In C order of the dimensions in any order, perhaps with room between items, backwards, or with steps of 0.
  void set_strides(Given& one) {
    if (one.sizes.empty()) return;
    const std::size_t first = input_.byte() % one.sizes.size();
    std::swap(one.sizes[0], one.sizes[first]);
    set_c_order(one);
    std::swap(one.sizes[0], one.sizes[first]);
    std::swap(one.strides[0], one.strides[first]);
    const std::int64_t room = 1 + input_.one_in(4);
    for (std::int64_t& stride : one.strides) {
      if (stride < (1 << 20)) stride *= room;
      if (input_.one_in(12)) stride = input_.upto(1) == 0 ? 0 : -stride;
      stride = input_.perhaps(stride);
    }
  }

  // Bytes of a mask are 1, sometimes 0, seldom others. Numbers are small, seldom any bits.
  void fill(Given& one) {
    if (one.dtype == REGPLUG_BOOL) {
      for (char& byte : one.block) {
        const std::uint8_t drawn = input_.byte();
        byte = static_cast<char>(drawn < 232 ? 1 : drawn < 255 ? 0 : input_.byte());
      }
      return;
    }
    const std::uint8_t pattern = input_.byte();
    const std::size_t begin = static_cast<std::size_t>(one.data - one.block.data()) % 4;
    for (std::size_t i = begin; i + 4 <= one.block.size(); i += 4) {
      const float number = static_cast<float>((i / 4 * (pattern | 1U) + pattern) % 61) / 16 - 2;
      std::memcpy(&one.block[i], &number, 4);
    }
    if (pattern >= 250) std::fill(one.block.begin(), one.block.end(), static_cast<char>(input_.byte()));
  }

  // The same numbers in C order and in the manifest's order, with other padding, give the same outputs.
  static void check_padding(const Expected& expected, const std::vector<float>& wanted) {
    std::array<Given, kInputs> same;
    std::vector<regplug_tensor> inputs;
    for (std::size_t i = 0; i < kInputs; ++i) {
      same[i].name = kNames[i];
      same[i].dtype = kDtypes[i];
      same[i].sizes = expected[i].sizes;
      set_c_order(same[i]);
      allocate(same[i], false);
    }
    const float padding = std::numeric_limits<float>::quiet_NaN();
    for (std::int64_t sample = 0; sample < expected.batch(); ++sample) {
      for (std::size_t i = 0; i < kInputs; ++i) {
        for (std::int64_t j = 0; j < same[i].sizes[1]; ++j) {
          for (std::int64_t k = 0; k < (i == 0 ? same[i].sizes[2] : 1); ++k) {
            const Numbers place = i == 0 ? Numbers{sample, j, k} : Numbers{sample, j};
            const bool is_padding = i == 0 && expected.mask_at(sample, j) == 0;
            const void* const from = is_padding ? static_cast<const void*>(&padding) : expected[i].at(place);
            std::memcpy(same[i].at(place), from, static_cast<std::size_t>(same[i].item()));
          }
        }
      }
    }
    for (const Given& one : same) inputs.push_back(one.tensor());
    const Outputs outputs = call(inputs);
    hold(outputs != nullptr, "the same inputs in C order are served");
    const std::vector<float> got = numbers_of(outputs.get(), expected.batch());
    if (!std::all_of(wanted.begin(), wanted.end(), [](float number) { return std::isfinite(number); })) return;
    hold(got == wanted, "strides, order and padding do not matter");
  }

  static void hold_message(const std::string& message) {
    std::size_t letters = 0;  // of UTF-8
    for (const char byte : message) {
      hold((byte & 0x80) != 0 || (byte >= ' ' && byte != '\x7f'), "a reason is one line without control characters");
      letters += (byte & 0xC0) != 0x80;
    }
    hold(letters > 0 && letters <= 400 && message.back() == '.', "there is a short reason");
  }

  fuzz::Input input_;
};

}  // namespace

#ifdef CORPUS
int main(int, char** argv) {
  std::mt19937_64 draw(std::strtoull(argv[1], nullptr, 10));
  for (std::int64_t i = std::strtoll(argv[2], nullptr, 10); i-- > 0;) {
    std::vector<std::uint8_t> bytes(256);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(draw());
    Call({bytes.data(), bytes.size(), kSeldom}).run();
  }
  std::cout << outcomes[0] << " " << outcomes[1] << "\n";
}
#else
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Call({data, size, kSeldom}).run();
  return 0;
}
#endif
