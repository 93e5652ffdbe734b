// A model library of AOTInductor, loaded from memory through the C shim. It holds code and no weights.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "regplug/detail/aoti_shim.h"
#include "regplug/detail/aten_handle.h"
#include "regplug/detail/loading_lock.h"
#include "regplug/detail/shared_object.h"
#include "regplug/detail/translate_errors.h"
#include "regplug/error.h"

namespace regplug::detail {
REGPLUG_SHIM_BEGIN

class ModelLibrary {
 public:
  struct Release {
    void operator()(const ModelLibrary* library) const { release(*library); }
  };
  using Use = std::unique_ptr<const ModelLibrary, Release>;

  // Loads the bytes with this sha256. All bundles with the same bytes share one library. After its last use the library
  // is unloaded; if the dynamic linker keeps it, the next load reuses it. Throws Fault.
  static Use load(std::string_view bytes, const std::string& digest) {
    // Libraries that are still in use at exit are not released: their own data may be destroyed already.
    static const struct AtExit {
      ~AtExit() { exiting_ = true; }
    } at_exit;
    const std::lock_guard<std::mutex> lock(loading_lock);
    const auto found = loaded().find(digest);
    if (found != loaded().end()) return found->second->use();
    std::unique_ptr<ModelLibrary> library(new ModelLibrary(bytes, digest));
    return loaded().emplace(digest, std::move(library)).first->second->use();
  }

  ModelLibrary(const ModelLibrary&) = delete;
  ModelLibrary& operator=(const ModelLibrary&) = delete;
  ~ModelLibrary() { delete_containers(); }

  std::size_t num_inputs() const { return num_inputs_; }
  std::size_t num_outputs() const { return num_outputs_; }
  std::size_t num_constants() const { return num_constants_; }

  // Runs the model. Takes ownership of the inputs, also when it throws. Thread-safe.
  void run(AtenTensorHandle* inputs, AtenTensorHandle* outputs) const {
    AotiInterface::Container container = nullptr;
    try {
      container = take();
    } catch (...) {
      for (std::size_t i = 0; i < num_inputs_; ++i) AtenTensor(inputs[i]).reset();
      throw;
    }
    const std::int32_t code = calls_.run(container, inputs, num_inputs_, outputs, num_outputs_, nullptr, nullptr);
    give_back(container);
    check(code);
  }

 private:
  // By digest; includes unused ones that the dynamic linker keeps.
  static std::map<std::string, std::unique_ptr<ModelLibrary>>& loaded() {
    // Never destroyed, because parts of libtorch may be gone at exit.
    static auto* const libraries = new std::map<std::string, std::unique_ptr<ModelLibrary>>();
    return *libraries;
  }

  Use use() {
    ++uses_;
    return Use(this);
  }

  static void release(const ModelLibrary& used) {
    if (exiting_) return;
    const std::lock_guard<std::mutex> lock(loading_lock);
    const auto found = loaded().find(used.digest_);
    ModelLibrary& library = *found->second;
    if (--library.uses_ != 0) return;
    library.delete_containers();
    if (library.object_.unload()) loaded().erase(found);
  }

  struct Opened {};
  ModelLibrary(Opened, std::string_view bytes, const std::string& digest) : object_(linked(bytes)), digest_(digest) {}

  // Delegates, so that the destructor runs even if this constructor throws.
  ModelLibrary(std::string_view bytes, const std::string& digest) : ModelLibrary(Opened{}, bytes, digest) {
    find("ContainerCreateWithDevice", calls_.create);
    find("ContainerGetNumInputs", calls_.count_inputs);
    find("ContainerGetNumOutputs", calls_.count_outputs);
    find("ContainerGetNumConstants", calls_.count_constants);
    find("ContainerRunSingleThreaded", calls_.run);
    find("ContainerDelete", calls_.destroy);
    maybe_find("AOTInductorModelContainerExtractConstantsMapEntries", calls_.constants);
    maybe_find("AOTInductorGetLastError", calls_.last_error);
    free_.reserve(1);
    const AotiInterface::Container container = make();
    free_.push_back(container);
    check(calls_.count_inputs(container, &num_inputs_));
    check(calls_.count_outputs(container, &num_outputs_));
    check(calls_.count_constants(container, &num_constants_));
    if (num_constants_ == 0 || calls_.constants == nullptr) return;
    const AotiInterface::ConstantEntry* entries = nullptr;
    std::size_t filled = 0;
    check(calls_.constants(container, &entries, &filled, false));
    if (filled != num_constants_) throw Fault("expected a library that holds its constants, got one without");
  }

  AotiInterface::Container make() const {
    AotiInterface::Container made = nullptr;
    check(calls_.create(&made, 1, "cpu", nullptr));
    return made;
  }

  // There are as many containers as calls ever ran concurrently, of a few hundred bytes each.
  AotiInterface::Container take() const {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        const AotiInterface::Container container = free_.back();
        free_.pop_back();
        return container;
      }
      free_.reserve(free_.capacity() + 1);  // so that give_back never allocates
    }
    return make();
  }

  void give_back(AotiInterface::Container container) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(container);
  }

  void delete_containers() {
    for (const AotiInterface::Container container : free_) calls_.destroy(container);
    free_.clear();
  }

  template <typename Function>
  void find(const char* name, Function& function) {
    const std::string symbol = std::string("AOTInductorModel") + name;
    maybe_find(symbol.c_str(), function);
    if (function == nullptr) throw Fault("expected a model library of AOTInductor, got one without " + symbol);
  }

  template <typename Function>
  void maybe_find(const char* symbol, Function& function) {
    function = reinterpret_cast<Function>(object_.symbol(symbol));
  }

  // The library prints its error to stderr and keeps the text. When a call into torch failed, torch has the reason.
  void check(std::int32_t code) const {
    if (code == 0) return;
    const char* text = nullptr;
    if (calls_.last_error != nullptr) calls_.last_error(&text);
    const std::string line = text == nullptr ? "" : first_line(text);
    if (line == std::bad_alloc().what()) throw std::bad_alloc();
    if (line.empty() || line.find("API call failed") != std::string::npos) throw_shim_error();
    throw Fault(line);
  }

  static inline std::atomic<bool> exiting_{false};

  SharedObject object_;
  std::string digest_;
  std::size_t uses_ = 0;
  AotiInterface calls_{};
  // A container serves one call at a time: the library's own sharing costs a tenth of a short call.
  mutable std::mutex mutex_;
  mutable std::vector<AotiInterface::Container> free_;
  std::size_t num_inputs_ = 0;
  std::size_t num_outputs_ = 0;
  std::size_t num_constants_ = 0;
};

REGPLUG_SHIM_END
}  // namespace regplug::detail
