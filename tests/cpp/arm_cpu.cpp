// Prints which program of several this CPU takes, and what it says when there is none for it.
#include <regplug/detail/cpu.h>

#include <iostream>
#include <string>

namespace {

regplug::ProgramRecord program_for(const std::string& isa, const std::string& flags) {
  regplug::ProgramRecord program;
  program.backend = "aotinductor";
  program.properties = {{"isa", isa}, {"cpu_flags", flags}};
  return program;
}

}  // namespace

int main() {
  regplug::Manifest manifest;
  manifest.programs = {program_for("x86-64-v2", "sse4_2 popcnt"), program_for("armv8-a", "asimd fp"),
                       program_for("x86-64-v3", "avx2 sse4_2 popcnt"), program_for("zz", "asimd zz")};
  std::cout << regplug::detail::best_for_this_cpu("p", manifest, "aotinductor").properties.at("isa") << "\n";
  manifest.programs = {program_for("zz", "asimd avx2 zz")};
  try {
    regplug::detail::best_for_this_cpu("p", manifest, "aotinductor");
  } catch (const regplug::Error& error) {
    std::cout << error.what() << "\n";
  }
}
