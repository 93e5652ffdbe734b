// regplug_units FOLDER: the torch-free parts by themselves; prints one line for each check that fails, then
// ATen's CPU capability as cpu.h finds it. FOLDER is for files.
#include <regplug/checks.h>
#include <regplug/cpu.h>
#include <regplug/golden.h>
#include <regplug/safetensors.h>
#include <regplug/sha256.h>
#include <regplug/view.h>
#include <regplug/write_safetensors.h>

#include <cmath>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

namespace {

int failures = 0;

void check(bool holds, const std::string& what) {
  if (holds) return;
  std::cout << "FAILED: " << what << "\n";
  ++failures;
}

template <typename Call>
std::string message_of(Call call) {
  try {
    call();
    return "";
  } catch (const regplug::Error& error) {
    return error.what();
  }
}

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string sha256(regplug::detail::Sha256::Compress way, std::string_view bytes, std::size_t split = 0) {
  regplug::detail::Sha256 hash(way);
  hash.update(bytes.substr(0, split));
  hash.update(bytes.substr(split));
  return hash.hex();
}

void check_sha256() {
  using regplug::detail::Sha256;
  std::vector<Sha256::Compress> ways{Sha256::portable};
  if (Sha256::fastest() != Sha256::portable) ways.push_back(Sha256::fastest());
  for (const Sha256::Compress way : ways) {  // FIPS 180-4's examples
    check(sha256(way, "") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "sha256 of nothing");
    check(sha256(way, "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "sha256 of abc");
    check(sha256(way, "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
          "sha256 of two blocks");
    check(sha256(way, std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
          "sha256 of a million a");
  }
  std::mt19937 random(0);
  for (int i = 0; i < 500; ++i) {
    std::string bytes(random() % 1000, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    const std::size_t split = random() % (bytes.size() + 1);
    for (const Sha256::Compress way : ways) {
      check(sha256(way, bytes, split) == sha256(Sha256::portable, bytes), "sha256 of random bytes");
    }
  }
}

void check_views() {
  using regplug::TensorView;
  std::vector<float> numbers(24);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i);
  const TensorView whole(numbers.data(), {2, 4, 3});
  const TensorView slice = whole.narrow(1, 1, 2);
  check(whole.is_contiguous() && !slice.is_contiguous(), "a slice is not contiguous");
  const regplug::Tensor copy = regplug::Tensor::copy_of(slice);
  check(copy.view().is_contiguous() && copy.data<float>()[0] == 3 && copy.data<float>()[6] == 15, "a copied slice");
  const TensorView turned(regplug::Dtype::float32, numbers.data(), {3, 4}, {1, 3});
  check(regplug::Tensor::copy_of(turned).data<float>()[1] == 3, "a copied transpose");
  check(message_of([&] { copy.data<double>(); }) == "tensor: expected float64, got float32.", "data<double> of floats");
  check(message_of([&] { whole.narrow(1, 3, 2); }) ==
            "tensor: expected a part of float32 [2, 4, 3], got 2 from 3 along dimension 1.",
        "a slice beyond the end");
  std::vector<char> odd(1 + 24 * sizeof(float));
  whole.copy_to(odd.data() + 1);
  const TensorView unaligned(regplug::Dtype::float32, odd.data() + 1, {2, 4, 3});
  check(!unaligned.is_aligned() && regplug::Tensor::copy_of(unaligned).data<float>()[23] == 23, "bytes that lie oddly");
}

void check_numbers() {
  using regplug::detail::from_half;
  check(from_half(0x3c00) == 1 && from_half(0xc000) == -2 && from_half(0x7bff) == 65504, "half: ordinary numbers");
  check(from_half(0x0001) == std::ldexp(1.0, -24) && from_half(0x03ff) == std::ldexp(1023.0, -24), "half: subnormals");
  check(std::isinf(from_half(0xfc00)) && std::isnan(from_half(0x7e00)), "half: infinity and no number");
  const std::uint16_t upper = 0x4049;
  check(regplug::detail::to_double(regplug::Dtype::bfloat16, reinterpret_cast<const char*>(&upper)) == 3.140625,
        "bfloat16: pi");
}

void check_writing(const std::string& folder) {
  const std::string path = folder + "/written.safetensors";
  const std::vector<double> large{1, 2, 3};
  const std::vector<std::int8_t> small{4, 5, 6, 7, 8};
  const regplug::TensorView strided(regplug::Dtype::int8, small.data(), {2}, {3});
  regplug::write_safetensors(path, {{"a", {small.data(), {5}}}, {"b", {large.data(), {3, 1}}}, {"c", strided}});
  const regplug::SafeTensors read(regplug::Bytes(bytes_of(path)), path);
  check(read.tensors().size() == 3 && read.at("b").signature() == "float64 [3, 1]", "written tensors");
  check(read.at("b").bytes == std::string_view(reinterpret_cast<const char*>(large.data()), 24), "written bytes");
  check(read.at("c").bytes == "\4\7", "a strided view is written whole");
  check((bytes_of(path).size() - 24 - 7) % 8 == 0, "the data begins at a multiple of 8");
  const std::string before = bytes_of(path);
  regplug::write_safetensors(path, {{"a", {small.data(), {0}}}});
  check(bytes_of(path) != before, "a file is replaced");
  check(message_of([&] { regplug::write_safetensors(folder, {}); }) == folder + ": not a regular file.", "a folder");
  check(message_of([] { regplug::write_safetensors("/dev/full", {}); }) == "/dev/full: not a regular file.",
        "a device");
  check(message_of([&] { regplug::write_safetensors(folder + "/no/where", {}); }) ==
            folder + "/no/where: No such file or directory.",
        "a folder that is not there");
}

void check_sizes() {
  regplug::Manifest manifest;
  manifest.input.name = "images";
  manifest.input.shape = {regplug::kFree, 3, 28, 28};
  const auto said = [&](std::int64_t batch, std::int64_t width) {
    const std::int64_t sizes[] = {batch, 3, 28, width};
    return message_of([&] { regplug::detail::check_shape("program 'p'", manifest, sizes, 4); });
  };
  const std::string wanted = "program 'p': expected images [B, 3, 28, 28], got [";
  check(said(0, 28).empty() && said(1000000, 28).empty(), "a batch that fits");
  check(said(1, 29) == wanted + "1, 3, 28, 29].", "another width");
  check(said(std::int64_t{1} << 61, 28) == wanted + "2305843009213693952, 3, 28, 28].", "a batch of too many bytes");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: regplug_units FOLDER\n";
    return 2;
  }
  check_sha256();
  check_views();
  check_numbers();
  check_writing(argv[1]);
  check_sizes();
  std::cout << regplug::detail::cpu_capability() << "\n";
  return failures == 0 ? 0 : 1;
}
