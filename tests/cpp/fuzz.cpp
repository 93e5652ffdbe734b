// A fuzz target: one strict reader, and the properties of everything that it accepts. With -DMANIFEST the reader of
// manifests, otherwise that of safetensors. With -DCORPUS a program that reads the given files, for compilers without a
// fuzzer.
#include <regplug/safetensors.h>
// the header above is compiled with nothing before it
#include <regplug/detail/bytes.h>
#include <regplug/error.h>
#ifdef MANIFEST
#include <regplug/detail/mask_rules.h>
#include <regplug/detail/read_manifest.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

namespace {

void hold(bool holds, const char* what) {
  if (holds) return;
  std::cerr << "does not hold: " << what << "\n";
  std::abort();
}

void hold_message(const std::string& message, const std::string& begin) {
  hold(message.rfind(begin, 0) == 0 && message.back() == '.', "a message says which file and ends with a full stop");
  hold(message.size() < 4096, "a message is short");
  for (const char letter : message) hold(letter >= ' ' && letter <= '~', "a message is one line of printable ASCII");
}

#ifdef MANIFEST
// Masks of the shortest sequence: none of its tokens is padding, or all are.
void hold_masks(const regplug::Manifest& manifest) {
  const std::int64_t length = manifest.min_tokens == 0 ? manifest.input.shape[1] : manifest.min_tokens;
  if (!manifest.has_mask() || length > 4096) return;
  std::vector<char> bytes(static_cast<std::size_t>(length), 1);
  const std::int64_t sizes[] = {1, length};
  const std::int64_t strides[] = {length, 1};
  const regplug::detail::MaskBytes mask(bytes.data(), sizes, strides);
  hold(regplug::detail::mask_fault(manifest, mask).empty(), "a mask of all tokens is accepted");
  const bool reads_tokens =
      manifest.parts.empty() || !std::all_of(manifest.parts.begin(), manifest.parts.end(),
                                             [](const regplug::PartRecord& part) { return part.is_vector; });
  std::fill(bytes.begin(), bytes.end(), '\0');
  hold(regplug::detail::mask_fault(manifest, mask).empty() != reads_tokens, "a mask of no token is refused");
}

void hold_inputs(const regplug::Manifest& manifest) {
  hold(manifest.input.shape.size() >= 2 && manifest.input.shape.size() <= 8, "an input has two to eight sizes");
  hold(manifest.num_inputs() <= 66 && manifest.parts.size() <= 64, "there are not too many inputs and parts");
  std::size_t vectors = manifest.has_mask() ? 1 : 0;
  for (std::size_t i = vectors; i < manifest.more_inputs.size(); ++i) {
    const std::vector<std::int64_t>& shape = manifest.more_inputs[i].shape;
    hold(shape.size() == 2 && shape[1] >= 1, "a vector has a batch and a width");
  }
  std::int64_t width = 0;
  for (const regplug::PartRecord& part : manifest.parts) {
    width += part.width;
    vectors += part.is_vector ? 1 : 0;
    hold(!(part.is_vector && part.takes_mask), "a vector takes no mask");
  }
  hold(manifest.more_inputs.size() == vectors, "each vector is a part");
  hold(manifest.parts.empty() || width == manifest.cond_dim, "the parts are the conditioning vector");
  hold_masks(manifest);
}

void read(const std::string& text) {
  try {
    const regplug::Manifest manifest = regplug::detail::read_manifest(text, "file");
    hold_inputs(manifest);
    hold(!manifest.outputs.empty(), "there is an output");
    for (const regplug::TensorSpec& output : manifest.outputs) {
      hold(output.shape.size() == 2 && output.shape[1] >= 1, "an output has a batch and a width");
    }
    bool smoke = false;
    for (const regplug::GoldenCase& golden : manifest.cases) {
      smoke = smoke || golden.name == "batch_1";
      hold(golden.batch >= 0 && golden.length >= 1, "a case has sizes");
    }
    hold(smoke, "the case every loader runs is there");
    for (const regplug::ProgramRecord& program : manifest.programs) {
      hold(manifest.files.count(program.file) == 1, "a program's file is listed");
      hold(program.file.find('/') == std::string::npos && program.file.front() != '.', "a file name is no path");
    }
    hold(manifest.files.count("weights.safetensors") == 1, "the weights are listed");
    hold(!manifest.is_conditioner() || (manifest.layout && manifest.film), "a conditioner has layout and FiLM");
  } catch (const regplug::Error& error) {
    hold_message(error.what(), "file: ");
  }
}
#else
void read(const std::string& text) {
  try {
    const regplug::detail::Bytes bytes(text);
    const std::string_view all = bytes.view();
    const regplug::SafeTensors file(bytes, "file");
    std::size_t data = 0;
    std::size_t sum = 0;
    for (const auto& [name, tensor] : file.tensors()) {
      std::uint64_t size = regplug::item_size(regplug::dtype_named(tensor.dtype));
      for (const std::int64_t length : tensor.shape) size *= static_cast<std::uint64_t>(length);
      hold(size == tensor.bytes.size(), "a tensor has the bytes of its shape");
      hold(tensor.bytes.data() >= all.data() + 8 || size == 0, "a tensor begins inside the file");
      hold(tensor.bytes.data() + tensor.bytes.size() <= all.data() + all.size(), "a tensor ends inside the file");
      hold(!name.empty() && name.size() <= 256 && tensor.shape.size() <= 8, "a tensor is within the limits");
      data += tensor.bytes.size();
      for (const char byte : tensor.bytes) sum += static_cast<unsigned char>(byte);
    }
    hold(data < all.size(), "tensors do not overlap");
    volatile std::size_t kept = sum;  // every byte was read
    static_cast<void>(kept);
  } catch (const regplug::Error& error) {
    hold_message(error.what(), "file: ");
  }
}
#endif

}  // namespace

#ifdef CORPUS
int main(int count, char** paths) {
  for (int i = 1; i < count; ++i) {
    std::ifstream file(paths[i], std::ios::binary);
    read({std::istreambuf_iterator<char>(file), {}});
  }
  std::cout << count - 1 << "\n";
}
#else
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  read(std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
#endif
