// regplug_aoti_life --starved BUNDLE: opens BUNDLE with too little memory, and a little more each time; each attempt
// must end as an error or a success. regplug_aoti_life BUNDLE...: opens and closes every bundle, and checks what
// remains: results that the caller holds, descriptors, mappings, a moved-from bundle. Two bundles stay open until the
// process ends. Prints one JSON object.
#include <regplug/aotinductor.h>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace aoti_life {
namespace {

using regplug::AOTInductorBundle;
using regplug::Tensor;
using regplug::TensorView;

std::unique_ptr<AOTInductorBundle> until_the_end;  // destroyed after everything in main()

template <typename Call>
std::string message_of(Call call) {
  try {
    call();
    return "";
  } catch (const regplug::Error& error) {
    return error.what();
  }
}

regplug::Json held() {
  std::ifstream maps("/proc/self/maps");
  std::size_t mappings = 0;
  for (std::string line; std::getline(maps, line);)
    mappings += line.find("regplug-program") == std::string::npos ? 0 : 1;
  const std::filesystem::directory_iterator descriptors("/proc/self/fd");
  return {{"descriptors", std::distance(begin(descriptors), end(descriptors))}, {"mappings", mappings}};
}

// Whether results keep their values after their bundle was closed.
bool outlives(const std::string& dir) {
  std::vector<Tensor> results;
  std::vector<Tensor> copies;
  {
    const regplug::Bundle bundle = regplug::Bundle::open(dir);
    const AOTInductorBundle program = AOTInductorBundle::open(dir);
    for (const regplug::GoldenCase& golden : bundle.manifest().cases) {
      results.push_back(program.run(regplug::golden_input(bundle, golden)));
      copies.push_back(Tensor::copy_of(results.back()));
    }
  }
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (results[i].nbytes() != copies[i].nbytes()) return false;
    if (results[i].nbytes() != 0 && std::memcmp(results[i].data(), copies[i].data(), results[i].nbytes()) != 0)
      return false;
  }
  return true;
}

regplug::Json moved_from(const std::string& dir) {
  AOTInductorBundle first = AOTInductorBundle::open(dir);
  const AOTInductorBundle second = std::move(first);
  const std::vector<double> numbers(4 * 24);
  const TensorView input(regplug::dtype_named(second.manifest().input.dtype), numbers.data(), {1, 4, 24});
  return {message_of([&] { first.run(input); }), message_of([&] { first.run_film(input); }),
          message_of([&] { first.reload_weights(dir + "/weights.safetensors"); }),
          message_of([&] { second.run(input); })};
}

// Under a file size limit, which the library's file in memory exceeds, opening is an error and not the end of the
// process.
std::string limited(const std::string& dir) {
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit limit = before;
  limit.rlim_cur = 1000;
  setrlimit(RLIMIT_FSIZE, &limit);
  const std::string said = message_of([&] { AOTInductorBundle::open(dir); });
  setrlimit(RLIMIT_FSIZE, &before);
  return said;
}

// How often opening succeeded (`ok`), was an error (`refused`), or ended the process (`died`).
regplug::Json starved(const std::string& dir) {
  std::map<std::string, int> endings{{"ok", 0}, {"refused", 0}, {"died", 0}};
  for (rlim_t more = 0; more <= 2500; more += 50) {
    const pid_t child = ::fork();
    if (child == 0) {
      rlim_t pages = 0;
      std::ifstream("/proc/self/statm") >> pages;
      const rlim_t bytes = pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE)) + more * 1024;
      const rlimit limit{bytes, bytes};
      setrlimit(RLIMIT_AS, &limit);
      try {
        AOTInductorBundle::open(dir);
      } catch (const regplug::Error&) {
        ::_exit(1);
      }
      ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    ++endings[code == 0 ? "ok" : code == 1 ? "refused" : "died"];
  }
  return endings;
}

}  // namespace

inline int main_of(int argc, char** argv) {
  const std::vector<std::string> dirs(argv + 1, argv + argc);
  if (dirs.empty()) {
    std::cerr << "usage: regplug_aoti_life [--starved] BUNDLE...\n";
    return 2;
  }
  regplug::Json report;
  if (dirs.size() == 2 && dirs.front() == "--starved") {
    std::cout << starved(dirs.back()).dump() << "\n";
    return 0;
  }
  try {
    report["limited"] = limited(dirs.front());
    AOTInductorBundle::open(dirs.front());
    report["before"] = held();
    bool all = true;
    for (const std::string& dir : dirs) all = outlives(dir) && all;
    report["after"] = held();
    report["outlives"] = all;
    report["moved_from"] = moved_from(dirs.front());
    until_the_end = std::make_unique<AOTInductorBundle>(AOTInductorBundle::open(dirs.back()));
    static const AOTInductorBundle until_the_end_too = AOTInductorBundle::open(dirs.front());
  } catch (const std::exception& error) {
    report["error"] = error.what();
  }
  std::cout << report.dump() << "\n";
  return 0;
}

}  // namespace aoti_life
