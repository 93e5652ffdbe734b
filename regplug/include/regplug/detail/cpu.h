// The features of this CPU, and the best program for it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "regplug/detail/cpuid.h"
#include "regplug/detail/hwcap.h"
#include "regplug/error.h"
#include "regplug/manifest.h"

namespace regplug::detail {

// The instruction set that nearly every CPU of this kind has.
#if defined(__aarch64__)
inline constexpr const char* kDefaultIsa = "armv8-a";
#else
inline constexpr const char* kDefaultIsa = "x86-64-v3";
#endif

// Without a stream, which would take missing memory for the end of the text.
inline std::vector<std::string> split_words(const std::string& text) {
  constexpr const char* kSpaces = " \t\n\v\f\r";
  std::vector<std::string> found;
  for (std::size_t begin = 0, end = 0; (begin = text.find_first_not_of(kSpaces, end)) != std::string::npos;) {
    end = std::min(text.find_first_of(kSpaces, begin), text.size());
    found.push_back(text.substr(begin, end - begin));
  }
  return found;
}

// The words of the first `flags` line of a file like /proc/cpuinfo; empty when there is no such line.
inline std::set<std::string> flags_in_file(const char* path) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, 5, "flags") != 0) continue;
    const std::vector<std::string> found = split_words(line.substr(line.find(':') + 1));
    return {found.begin(), found.end()};
  }
  if (file.bad()) throw std::bad_alloc();  // the stream has caught it
  return {};
}

// The features of this CPU, as /proc/cpuinfo spells them. A container may have no /proc/cpuinfo.
inline const std::set<std::string>& cpu_flags() {
  static const std::set<std::string> flags = [] {
    std::set<std::string> found = hwcap_flags();
    if (found.empty()) found = flags_in_file("/proc/cpuinfo");
    return found.empty() ? cpuid_flags() : found;
  }();
  return flags;
}

// ATen's CPU capability, as at::get_cpu_capability() spells it: the kernels that torch uses here. The C shim has no
// call for it; this is the rule of ATen/native/DispatchStub.cpp, including its environment variable.
inline const std::string& cpu_capability() {
  static const std::string capability = [] {
    const char* chosen = std::getenv("ATEN_CPU_CAPABILITY");
    const std::string asked = chosen == nullptr ? "" : chosen;
    if (asked == "default") return "DEFAULT";
    if (asked == "avx2") return "AVX2";
    if (asked == "avx512") return "AVX512";
    const auto all = [](const std::vector<std::string>& wanted) {
      for (const std::string& flag : wanted) {
        if (cpu_flags().count(flag) == 0) return false;
      }
      return true;
    };
    if (all({"avx512vl", "avx512bw", "avx512dq", "fma"})) return "AVX512";
    return all({"avx2", "fma"}) ? "AVX2" : "DEFAULT";
  }();
  return capability;
}

// Of the programs of a backend that this CPU can run, the one that uses most of its features. `owner` begins every
// message.
inline const ProgramRecord& best_for_this_cpu(const std::string& owner, const Manifest& manifest,
                                              const std::string& backend) {
  std::set<std::string> known;
  const ProgramRecord* best = nullptr;
  std::size_t most = 0;
  std::vector<std::string> nearest;  // the smallest set of missing features
  for (const ProgramRecord& program : manifest.programs) {
    known.insert(program.backend);
    if (program.backend != backend) continue;
    const auto property = program.properties.find("cpu_flags");
    const std::vector<std::string> list = split_words(property == program.properties.end() ? "" : property->second);
    const std::set<std::string> wanted(list.begin(), list.end());
    std::vector<std::string> missing;
    std::set_difference(wanted.begin(), wanted.end(), cpu_flags().begin(), cpu_flags().end(),
                        std::back_inserter(missing));
    if (!missing.empty()) {
      if (nearest.empty() || missing.size() < nearest.size()) nearest = missing;
    } else if (best == nullptr || wanted.size() > most) {
      best = &program;
      most = wanted.size();
    }
  }
  if (best != nullptr) return *best;
  if (nearest.empty()) {
    const std::string names = format_list(known);
    throw Error(owner + ": not in this bundle; known: " + (known.empty() ? "none" : names.substr(1, names.size() - 2)) +
                ".");
  }
  std::string flags;
  for (const std::string& flag : nearest) flags += (flags.empty() ? "" : " ") + flag;
  throw Error(owner + ": expected a CPU with " + flags + ", got one without; export with --isa " + kDefaultIsa + ".");
}

}  // namespace regplug::detail
