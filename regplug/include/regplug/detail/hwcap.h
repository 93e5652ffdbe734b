// The features of an ARM CPU, as the system tells programs.
#pragma once

#include <set>
#include <string>

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace regplug::detail {

// The words of the line `Features` of /proc/cpuinfo. In an emulator of one process, that file is the host's. Empty on
// other CPUs than aarch64.
inline std::set<std::string> hwcap_flags() {
  std::set<std::string> flags;
#if defined(__aarch64__)
  // in the order of the bits; the kernel never changes it
  constexpr const char* first[] = {"fp",      "asimd", "evtstrm", "aes",    "pmull",    "sha1",     "sha2",    "crc32",
                                   "atomics", "fphp",  "asimdhp", "cpuid",  "asimdrdm", "jscvt",    "fcma",    "lrcpc",
                                   "dcpop",   "sha3",  "sm3",     "sm4",    "asimddp",  "sha512",   "sve",     "asimdfhm",
                                   "dit",     "uscat", "ilrcpc",  "flagm",  "ssbs",     "sb",       "paca",    "pacg"};
  constexpr const char* second[] = {"dcpodp",  "sve2",    "sveaes",   "svepmull", "svebitperm", "svesha3",
                                    "svesm4",  "flagm2",  "frint",    "svei8mm",  "svef32mm",   "svef64mm",
                                    "svebf16", "i8mm",    "bf16"};
  const auto add = [&flags](unsigned long bits, const auto& words) {
    for (const char* word : words) {
      if ((bits & 1) != 0) flags.insert(word);
      bits >>= 1;
    }
  };
  add(::getauxval(AT_HWCAP), first);
  add(::getauxval(AT_HWCAP2), second);
#endif
  return flags;
}

}  // namespace regplug::detail
