// A model library of AOTInductor, loaded from memory through the C shim. It holds code and no weights.
#pragma once

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "regplug/aoti_shim.h"
#include "regplug/aten_handle.h"
#include "regplug/error.h"
#include "regplug/folder.h"
#include "regplug/guard.h"

namespace regplug::detail {

class ModelLibrary {
 public:
  // Loads the bytes, whose sha256 is `digest`; the same bytes are loaded once and serve every bundle that has them.
  // A library is never unloaded: the templates inside make the dynamic linker keep it anyway. Throws Error.
  static const ModelLibrary& load(std::string_view bytes, const std::string& digest) {
    // Not destroyed at exit, when parts of libtorch are gone already.
    static auto* const loaded = new std::map<std::string, std::unique_ptr<const ModelLibrary>>();
    const std::lock_guard<std::mutex> lock(torch_loading);
    std::unique_ptr<const ModelLibrary>& place = (*loaded)[digest];
    if (!place) place.reset(new ModelLibrary(bytes));
    return *place;
  }

  std::size_t num_inputs() const { return num_inputs_; }
  std::size_t num_outputs() const { return num_outputs_; }
  std::size_t num_constants() const { return num_constants_; }

  // Runs the model; takes over the inputs, also when it throws. Thread-safe.
  void run(AtenTensorHandle* inputs, AtenTensorHandle* outputs) const {
    const AotiInterface::Container container = take();
    const std::int32_t code = calls_.run(container, inputs, num_inputs_, outputs, num_outputs_, nullptr, nullptr);
    give_back(container);
    check(code);
  }

 private:
  explicit ModelLibrary(std::string_view bytes) {
    Descriptor file = sealed(bytes);
    const std::string path = "/proc/self/fd/" + std::to_string(file.get());
    handle_ = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ == nullptr) {
      std::string text = first_line(::dlerror());
      if (text.rfind(path + ": ", 0) == 0) text.erase(0, path.size() + 2);
      throw Reported(text);
    }
    // The descriptor stays open as long as the library is loaded, that is for good: the dynamic linker knows a library
    // by its path first, and under a number that is used again it would find the old one.
    file.release();
    find("ContainerCreateWithDevice", calls_.create);
    find("ContainerGetNumInputs", calls_.count_inputs);
    find("ContainerGetNumOutputs", calls_.count_outputs);
    find("ContainerGetNumConstants", calls_.count_constants);
    find("ContainerRunSingleThreaded", calls_.run);
    maybe_find("AOTInductorModelContainerExtractConstantsMapEntries", calls_.constants);
    maybe_find("AOTInductorGetLastError", calls_.last_error);
    const AotiInterface::Container container = make();
    free_.push_back(container);
    check(calls_.count_inputs(container, &num_inputs_));
    check(calls_.count_outputs(container, &num_outputs_));
    check(calls_.count_constants(container, &num_constants_));
    if (num_constants_ == 0 || calls_.constants == nullptr) return;
    const AotiInterface::ConstantEntry* entries = nullptr;
    std::size_t filled = 0;
    check(calls_.constants(container, &entries, &filled, false));
    if (filled != num_constants_) throw Reported("expected a library that holds its constants, got one without");
  }

  AotiInterface::Container make() const {
    AotiInterface::Container made = nullptr;
    check(calls_.create(&made, 1, "cpu", nullptr));
    return made;
  }

  // There come to be as many containers, of a few hundred bytes, as calls ever ran side by side.
  AotiInterface::Container take() const {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        const AotiInterface::Container container = free_.back();
        free_.pop_back();
        return container;
      }
      free_.reserve(free_.capacity() + 1);  // so that giving back never allocates
    }
    return make();
  }

  void give_back(AotiInterface::Container container) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(container);
  }

  // The bytes as a file that nobody can change any more.
  static Descriptor sealed(std::string_view bytes) {
    Descriptor file(::memfd_create("regplug-program", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    while (file.get() >= 0 && !bytes.empty()) {
      const ::ssize_t done = ::write(file.get(), bytes.data(), bytes.size());
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) break;
      bytes.remove_prefix(static_cast<std::size_t>(done));
    }
    if (file.get() < 0 || !bytes.empty() ||
        ::fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) != 0) {
      throw Reported(std::string("in memory: ") + std::strerror(errno));
    }
    return file;
  }

  template <typename Function>
  void find(const char* name, Function& function) {
    const std::string symbol = std::string("AOTInductorModel") + name;
    maybe_find(symbol.c_str(), function);
    if (function == nullptr) throw Reported("expected a model library of AOTInductor, got one without " + symbol);
  }

  template <typename Function>
  void maybe_find(const char* symbol, Function& function) {
    function = reinterpret_cast<Function>(::dlsym(handle_, symbol));
  }

  // The library prints its error to stderr and keeps the text; where a call into torch failed, torch has the reason.
  void check(std::int32_t code) const {
    if (code == 0) return;
    const char* text = nullptr;
    if (calls_.last_error != nullptr) calls_.last_error(&text);
    const std::string told = text == nullptr ? "" : first_line(text);
    if (told.empty() || told.find("API call failed") != std::string::npos) shim_failed();
    throw Reported(told);
  }

  void* handle_ = nullptr;
  AotiInterface calls_{};
  // A container serves one call at a time: the library's own way of sharing one costs a tenth of a short call.
  mutable std::mutex mutex_;
  mutable std::vector<AotiInterface::Container> free_;
  std::size_t num_inputs_ = 0;
  std::size_t num_outputs_ = 0;
  std::size_t num_constants_ = 0;
};

}  // namespace regplug::detail
