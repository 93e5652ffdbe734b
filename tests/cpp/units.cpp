// regplug_units FOLDER: unit tests of the parts without torch. Prints a line for each check that fails, and ATen's CPU
// capability as detail/cpu.h finds it. FOLDER is for files.
#include <regplug/bundle.h>
#include <regplug/detail/cpu.h>
#include <regplug/detail/cpuid.h>
#include <regplug/detail/program_checks.h>
#include <regplug/detail/read_manifest.h>
#include <regplug/detail/sha256.h>
#include <regplug/golden.h>
#include <regplug/safetensors.h>
#include <regplug/tensor.h>
#include <regplug/write_safetensors.h>

#include <sys/resource.h>

#include <algorithm>
#include <clocale>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <locale>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace units {
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
            "tensor: expected a slice of float32 [2, 4, 3], got start 3 and length 2 in dimension 1.",
        "a slice beyond the end");
  std::vector<char> odd(1 + 24 * sizeof(float));
  whole.copy_to(odd.data() + 1);
  const TensorView unaligned(regplug::Dtype::float32, odd.data() + 1, {2, 4, 3});
  check(!unaligned.is_aligned() && regplug::Tensor::copy_of(unaligned).data<float>()[23] == 23, "unaligned bytes");
}

void check_invalid_views() {
  using regplug::Dtype;
  using regplug::Sizes;
  using regplug::Tensor;
  using regplug::TensorView;
  constexpr std::int64_t large = std::int64_t{1} << 62;
  const auto said = [](const Sizes& sizes) { return message_of([&] { TensorView(Dtype::float32, nullptr, sizes); }); };
  check(said({large, 4, 24}) == "tensor: expected fewer than 2^63 bytes, got float32 [4611686018427387904, 4, 24].",
        "a product of sizes that overflows");
  check(said({large, 0, 24}) == "tensor: expected fewer than 2^63 bytes, got float32 [4611686018427387904, 0, 24].",
        "strides that overflow with a size of 0");
  check(said({2, -1}) == "tensor: expected sizes >= 0, got [2, -1].", "a negative size");
  check(said({large >> 3, 0}).empty() && said({0, large >> 3}).empty(), "a tensor of no items");
  const auto strided = [](const Sizes& sizes, const Sizes& strides) {
    return message_of([&] { TensorView(Dtype::float32, nullptr, sizes, strides); });
  };
  const std::string beyond = "tensor: expected strides within 2^63 bytes, got ";
  check(strided({2}, {large}) == beyond + "[4611686018427387904] for [2].", "a stride that overflows in bytes");
  check(strided({2}, {std::numeric_limits<std::int64_t>::min()}) == beyond + "[-9223372036854775808] for [2].",
        "the least stride");
  check(strided({3, 3}, {large >> 2, large >> 2}).rfind(beyond, 0) == 0, "strides that overflow together");
  check(strided({2}, {1, 1}) == "tensor: expected one stride for each size, got [1, 1] for [2].",
        "one stride too many");
  const std::vector<float> numbers{0, 1, 2, 3};
  const TensorView backward(Dtype::float32, numbers.data() + 3, {4}, {-1});
  check(Tensor::copy_of(backward).data<float>()[3] == 0, "a view from the end to the beginning");
  check(Tensor::copy_of(TensorView(Dtype::float32, numbers.data(), {0, large >> 3})).items() == 0,
        "a copy without items");
  const TensorView far(Dtype::float32, numbers.data(), {1, 0}, {large >> 2, large >> 2});
  check(far.narrow(1, 0, 0).narrow(0, 1, 0).items() == 0 && far.is_contiguous(), "a slice without items");
  const std::string none = "tensor: expected a tensor, got none.";
  check(message_of([] { Tensor::copy_of(TensorView()); }) == none, "a copy of no tensor");
  check(message_of([] { Tensor::copy_of(TensorView(Dtype::float32, nullptr, {2})); }) == none, "a copy without memory");
  const Sizes sizes{large, 4};
  check(message_of([&] { static_cast<void>(sizes.product()); }) ==
            "tensor: expected a product of sizes below 2^63, got [4611686018427387904, 4].",
        "a product that overflows");
  const regplug::TensorBytes cut{"float32", {4}, std::string_view("1234", 4)};
  check(message_of([&] { static_cast<void>(TensorView(cut)); }) == "tensor: expected 16 bytes, got 4.",
        "fewer bytes than the shape needs");
}

void check_messages() {
  const auto said = [](const std::string& text) { return std::string(regplug::Error(text).what()); };
  check(said("tab\tline\nreturn\rescape\x1b[31m\x7f") == "tab\\tline\\nreturn\\rescape\\x1b[31m\\x7f",
        "control characters in a message");
  check(said(std::string("a\0b", 3)) == "a\\x00b", "NUL in a message");
  check(said("\xC2\x9B \xD8\x9C \xE2\x80\x8B \xE2\x80\xAE \xE2\x81\xA9 \xEF\xBB\xBF") ==
            "\\x9b \\u061c \\u200b \\u202e \\u2069 \\ufeff",
        "characters that reorder text");
  check(said("\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80") == "\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80",
        "letters of any language stay");
  check(said("\xFF \xC0\x80 \xED\xA0\x80 \xE2\x82 \xF4\x90\x80\x80 \xF0\x80\x80\x80") ==
            "\\xff \\xc0\\x80 \\xed\\xa0\\x80 \\xe2\\x82 \\xf4\\x90\\x80\\x80 \\xf0\\x80\\x80\\x80",
        "bytes that are not UTF-8");
  std::string accents;
  for (int i = 0; i < 400; ++i) accents += "\xC3\xA9";
  check(said(accents) == accents, "400 characters stay");
  check(said("b" + accents) == "b" + accents.substr(0, 598) + "..." + accents.substr(0, 194), "401 are shortened");
  check(said(std::string(101, '\n') + std::string(300, 'z')) ==
            said(std::string(101, '\n')) + std::string(98, 'z') + "..." + std::string(97, 'z'),
        "a message is escaped before it is measured");
  check(said(said("b" + accents)) == said("b" + accents), "a message that is passed on stays unchanged");
  std::string files;
  for (int i = 0; i < 30; ++i) files += "x123456789.";
  const std::string refused = message_of([&] {
    regplug::detail::read_manifest("{\"" + files + "\": 1, \"" + files + "\": 1}", "bundle " + std::string(390, 'd'));
  });
  check(refused.rfind("bundle ddd", 0) == 0 && refused.size() == 400 &&
            refused.substr(refused.size() - 5) == "...'.",
        "a long message is cut once, with its label");
}

// German numbers: in iostreams, and in printf if LOCPATH is a folder with such a locale.
class Comma : public std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

void check_locales() {
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new Comma));
  const bool german = std::setlocale(LC_NUMERIC, "de_DE.UTF-8") != nullptr;
  check(german || std::getenv("LOCPATH") == nullptr, "the locale in LOCPATH is used");
  using regplug::detail::format_number;
  check(format_number(2.01e-7) == "2.01e-07" && format_number(0.25) == "0.25" && format_number(1234.5) == "1.23e+03" &&
            format_number(0) == "0" && format_number(std::nan("")) == "nan" && format_number(-HUGE_VAL) == "-inf",
        "a number in a message, in any locale");
  check(regplug::detail::format_value({1.5, 1234567.25, 1e300, 12345, 2.0}) == "[1.5,1234567.25,1e+300,12345,2.0]",
        "numbers of a manifest, in any locale");
  check(regplug::detail::parse_json("[1.5]")[0] == 1.5, "a number is read, in any locale");
  std::locale::global(before);
  std::setlocale(LC_ALL, "C");
}

// The features that programs ask for, as regplug/backends/compiling.py lists them, are the same from CPUID.
void check_cpuid() {
  const std::set<std::string> system = regplug::detail::flags_in_file("/proc/cpuinfo");
  const std::set<std::string> own = regplug::detail::cpuid_flags();
  for (const char* word :
       {"pni",         "ssse3",       "sse4_1",     "sse4_2",       "popcnt",      "avx",           "avx2",
        "fma",         "f16c",        "bmi1",       "bmi2",         "abm",         "movbe",         "fma4",
        "xop",         "tbm",         "sse4a",      "avx512f",      "avx512bw",    "avx512cd",      "avx512dq",
        "avx512vl",    "avx512ifma",  "avx512vbmi", "avx512_vbmi2", "avx512_vnni", "avx512_bitalg", "avx512_vpopcntdq",
        "avx512_bf16", "avx512_fp16", "avx512er",   "avx512pf",     "avx_vnni",    "avx_ifma",      "amx_tile",
        "amx_bf16",    "amx_int8"}) {
    check(system.count(word) == own.count(word), std::string("cpuid and /proc/cpuinfo differ: ") + word);
  }
  check(std::includes(system.begin(), system.end(), own.begin(), own.end()),
        "a feature that /proc/cpuinfo does not have");
  check(regplug::detail::flags_in_file("/dev/null").empty(), "no flags in an empty file");
}

void check_numbers() {
  using regplug::detail::from_half;
  check(from_half(0x3c00) == 1 && from_half(0xc000) == -2 && from_half(0x7bff) == 65504, "half: ordinary numbers");
  check(from_half(0x0001) == std::ldexp(1.0, -24) && from_half(0x03ff) == std::ldexp(1023.0, -24), "half: subnormals");
  check(std::isinf(from_half(0xfc00)) && std::isnan(from_half(0x7e00)), "half: infinity and NaN");
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
  const regplug::SafeTensors read = regplug::read_safetensors(path);
  check(read.tensors().size() == 3 && read.at("b").signature() == "float64 [3, 1]", "written tensors");
  check(read.at("b").bytes == std::string_view(reinterpret_cast<const char*>(large.data()), 24), "written bytes");
  check(read.at("c").bytes == "\4\7", "a strided view is written in C order");
  check((bytes_of(path).size() - 24 - 7) % 8 == 0, "the data begins at a multiple of 8");
  const std::string before = bytes_of(path);
  regplug::write_safetensors(path, {{"a", {small.data(), {0}}}});
  check(bytes_of(path) != before, "a file is replaced");
  check(message_of([&] { regplug::write_safetensors(folder, {}); }) == folder + ": not a regular file.", "a folder");
  check(message_of([] { regplug::write_safetensors("/dev/full", {}); }) == "/dev/full: not a regular file.",
        "a device");
  check(message_of([&] { regplug::write_safetensors(folder + "/no/where", {}); }) ==
            folder + "/no/where: No such file or directory.",
        "a folder that does not exist");
  check(message_of([&] { regplug::read_safetensors(folder + "/none"); }) == folder + "/none: missing.",
        "a file that does not exist");
  check(message_of([&] { regplug::read_safetensors(folder); }) == folder + ": not a regular file.", "a folder to read");
}

void check_rejected_names(const std::string& folder) {
  const std::string path = folder + "/refused.safetensors";
  const std::vector<float> numbers(4);
  const regplug::TensorView one(numbers.data(), {1});
  const auto said = [&](const std::string& name) {
    return message_of([&] { regplug::write_safetensors(path, {{name, one}}); });
  };
  const std::string wanted = path + ": name: expected 1 to 256 letters, digits, '_', '.' and '-', got ";
  check(said("a/b") == wanted + "\"a/b\".", "a name with a slash");
  check(said("") == wanted + "\"\".", "an empty name");
  check(said("__metadata__") == wanted + "\"__metadata__\".", "the name of the metadata");
  check(said(std::string(301, 'a')) == wanted + "\"" + std::string(59, 'a') + "....", "a name of 301 letters");
  check(said("\xff") == wanted + "\"\\ufffd\".", "a name that is not UTF-8");
  const auto refused = [&](const std::map<std::string, regplug::TensorView>& tensors) {
    return message_of([&] { regplug::write_safetensors(path, tensors); });
  };
  check(refused({{"a", regplug::TensorView()}}) == path + ": tensor 'a': expected a tensor, got none.", "no tensor");
  const std::int64_t wide = std::int64_t{1} << 53;
  check(refused({{"a", {numbers.data(), {0, wide}}}}) ==
            path + ": tensor 'a': expected sizes and offsets below 2^53, got [0, 9007199254740992].",
        "a size that no reader accepts");
  const regplug::TensorView odd(regplug::Dtype::boolean, "\2", {1});
  check(refused({{"a", odd}}) == path + ": tensor 'a': expected bytes 0 and 1 in a bool tensor, got another.",
        "a bool that is neither 0 nor 1");
  std::map<std::string, regplug::TensorView> many;
  for (int i = 0; i < 4096; ++i) many[std::string(230, 'a') + std::to_string(i)] = one;
  check(refused(many).rfind(path + ": size: expected a header within 1048576 bytes, got ", 0) == 0, "a long header");
  many["b"] = one;
  check(refused(many) == path + ": name: expected at most 4096 tensors, got 4097.", "too many tensors");
  check(bytes_of(path).empty(), "what is rejected is not written");
  const std::string nul("a\0b", 3);
  const std::string no_nul = "a\\x00b: expected a path without NUL, got one with NUL.";
  check(message_of([&] { regplug::write_safetensors(nul, {}); }) == no_nul, "a path to write with NUL");
  check(message_of([&] { regplug::Bundle::open(nul); }) == "bundle " + no_nul, "a bundle's path with NUL");
}

bool is_pending() {
  sigset_t set;
  sigpending(&set);
  return sigismember(&set, SIGXFSZ) == 1;
}

// A write beyond the file size limit is an error; SIGXFSZ is not delivered, and a pending one of the host stays.
void check_file_size_limit(const std::string& folder) {
  const std::string path = folder + "/large.safetensors";
  const std::vector<float> numbers(2000);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit limit = before;
  limit.rlim_cur = 1000;
  setrlimit(RLIMIT_FSIZE, &limit);
  const auto said = [&] {
    return message_of([&] { regplug::write_safetensors(path, {{"a", {numbers.data(), {2000}}}}); });
  };
  check(said() == path + ": File too large." && !is_pending() && bytes_of(path).empty(), "a file beyond the limit");
  sigset_t only;
  sigset_t mask;
  sigemptyset(&only);
  sigaddset(&only, SIGXFSZ);
  pthread_sigmask(SIG_BLOCK, &only, &mask);
  check(said() == path + ": File too large." && !is_pending(), "no signal stays pending when the host blocks it");
  raise(SIGXFSZ);
  check(said() == path + ": File too large." && is_pending(), "a signal of the host stays pending");
  const timespec no_time{};
  check(sigtimedwait(&only, nullptr, &no_time) == SIGXFSZ && !is_pending(), "and only once");
  pthread_sigmask(SIG_SETMASK, &mask, nullptr);
  sigset_t now;
  pthread_sigmask(SIG_SETMASK, nullptr, &now);
  check(sigismember(&now, SIGXFSZ) == 0, "the signal mask is unchanged");
  setrlimit(RLIMIT_FSIZE, &before);
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

inline int main_of(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: regplug_units FOLDER\n";
    return 2;
  }
  check_sha256();
  check_views();
  check_invalid_views();
  check_messages();
  check_locales();
  check_cpuid();
  check_numbers();
  check_writing(argv[1]);
  check_rejected_names(argv[1]);
  check_file_size_limit(argv[1]);
  check_sizes();
  std::cout << regplug::detail::cpu_capability() << "\n";
  return failures == 0 ? 0 : 1;
}

}  // namespace units
