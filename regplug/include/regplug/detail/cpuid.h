// The features of this CPU from the CPUID instruction, for systems without /proc/cpuinfo.
#pragma once

#include <cstdint>
#include <set>
#include <string>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace regplug::detail {

// The features that programs ask for, as /proc/cpuinfo spells them, and like it only those that the system lets
// programs use. Empty on other CPUs than x86.
inline std::set<std::string> cpuid_flags() {
  std::set<std::string> flags;
#if defined(__x86_64__) || defined(__i386__)
  enum Register { eax, ebx, ecx, edx };
  // the registers that the system saves, as bits of XCR0; without them the instructions are not available
  constexpr std::uint32_t kAvx = 0x6;
  constexpr std::uint32_t kAvx512 = 0xE6;
  constexpr std::uint32_t kAmx = 0x60000;
  struct Flag {
    const char* word;
    std::uint32_t leaf;
    std::uint32_t part;
    Register where;
    unsigned bit;
    std::uint32_t saved;
  };
  constexpr Flag known[] = {
      {"pni", 1, 0, ecx, 0, 0},
      {"ssse3", 1, 0, ecx, 9, 0},
      {"fma", 1, 0, ecx, 12, kAvx},
      {"sse4_1", 1, 0, ecx, 19, 0},
      {"sse4_2", 1, 0, ecx, 20, 0},
      {"movbe", 1, 0, ecx, 22, 0},
      {"popcnt", 1, 0, ecx, 23, 0},
      {"avx", 1, 0, ecx, 28, kAvx},
      {"f16c", 1, 0, ecx, 29, kAvx},
      {"bmi1", 7, 0, ebx, 3, 0},
      {"avx2", 7, 0, ebx, 5, kAvx},
      {"bmi2", 7, 0, ebx, 8, 0},
      {"avx512f", 7, 0, ebx, 16, kAvx512},
      {"avx512dq", 7, 0, ebx, 17, kAvx512},
      {"avx512ifma", 7, 0, ebx, 21, kAvx512},
      {"avx512pf", 7, 0, ebx, 26, kAvx512},
      {"avx512er", 7, 0, ebx, 27, kAvx512},
      {"avx512cd", 7, 0, ebx, 28, kAvx512},
      {"avx512bw", 7, 0, ebx, 30, kAvx512},
      {"avx512vl", 7, 0, ebx, 31, kAvx512},
      {"avx512vbmi", 7, 0, ecx, 1, kAvx512},
      {"avx512_vbmi2", 7, 0, ecx, 6, kAvx512},
      {"avx512_vnni", 7, 0, ecx, 11, kAvx512},
      {"avx512_bitalg", 7, 0, ecx, 12, kAvx512},
      {"avx512_vpopcntdq", 7, 0, ecx, 14, kAvx512},
      {"amx_bf16", 7, 0, edx, 22, kAmx},
      {"avx512_fp16", 7, 0, edx, 23, kAvx512},
      {"amx_tile", 7, 0, edx, 24, kAmx},
      {"amx_int8", 7, 0, edx, 25, kAmx},
      {"avx_vnni", 7, 1, eax, 4, kAvx},
      {"avx512_bf16", 7, 1, eax, 5, kAvx512},
      {"avx_ifma", 7, 1, eax, 23, kAvx},
      {"abm", 0x80000001, 0, ecx, 5, 0},
      {"sse4a", 0x80000001, 0, ecx, 6, 0},
      {"xop", 0x80000001, 0, ecx, 11, kAvx},
      {"fma4", 0x80000001, 0, ecx, 16, kAvx},
      {"tbm", 0x80000001, 0, ecx, 21, 0},
  };
  const auto query = [](std::uint32_t leaf, std::uint32_t part, Register where) {
    unsigned answer[4] = {};
    const bool supported = __get_cpuid_count(leaf, part, &answer[eax], &answer[ebx], &answer[ecx], &answer[edx]) != 0;
    return supported ? answer[where] : 0U;
  };
  std::uint32_t saved = 0;
  if ((query(1, 0, ecx) >> 27 & 1) != 0) {  // the system uses XCR0
    std::uint32_t upper = 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
  }
  for (const Flag& flag : known) {
    const bool usable = (saved & flag.saved) == flag.saved;
    if (usable && (query(flag.leaf, flag.part, flag.where) >> flag.bit & 1) != 0) flags.insert(flag.word);
  }
#endif
  return flags;
}

}  // namespace regplug::detail
