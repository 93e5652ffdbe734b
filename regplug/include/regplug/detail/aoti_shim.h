// The C functions below AOTInductorBundle: those of a model library, and torch's C shim, which the library calls too.
// Linking chooses whose shim: libtorch's (regplug::aotinductor), or that of regplug::runtime, which defines
// REGPLUG_RUNTIME.
#pragma once

#include <cstddef>
#include <cstdint>

// What is built on the shim has other symbols over the runtime, so that two libraries of one process may choose
// differently.
#ifdef REGPLUG_RUNTIME
#include "regplug/detail/runtime_shim.h"
#define REGPLUG_SHIM_BEGIN inline namespace over_runtime {
#define REGPLUG_SHIM_END }
#else
#include "regplug/detail/libtorch_shim.h"
#define REGPLUG_SHIM_BEGIN
#define REGPLUG_SHIM_END
#endif

namespace regplug::detail {

// The functions that a model library exports, as torch/csrc/inductor/aoti_runtime/interface.h declares them.
struct AotiInterface {
  using Container = struct AOTInductorModelContainerOpaque*;
  struct ConstantEntry {
    const char* name;
    AtenTensorHandle handle;
  };
  std::int32_t (*create)(Container* made, std::size_t models, const char* device, const char* cubin_dir);
  std::int32_t (*destroy)(Container);
  std::int32_t (*count_inputs)(Container, std::size_t* count);
  std::int32_t (*count_outputs)(Container, std::size_t* count);
  std::int32_t (*count_constants)(Container, std::size_t* count);
  // Takes ownership of the inputs; the caller owns the outputs.
  std::int32_t (*run)(Container, AtenTensorHandle* inputs, std::size_t num_inputs, AtenTensorHandle* outputs,
                      std::size_t num_outputs, void* stream, void* proxy_executor);
  // Null when an older torch made the library.
  std::int32_t (*constants)(Container, const ConstantEntry** entries, std::size_t* count, bool inactive);
  std::int32_t (*last_error)(const char** text);
};

}  // namespace regplug::detail
