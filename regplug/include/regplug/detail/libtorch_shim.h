// The part of libtorch's C shim that loads and runs a model library.
//
// Declared here instead of including torch/csrc/inductor/aoti_torch/c/shim.h: every few versions of torch, that header
// requires a newer C++ standard, while the functions keep their binary interface ("you MUST MAINTAIN ABI
// compatibility", it says). So compiling needs no torch header, and one binary runs with any torch that has these
// symbols (2.10 and later; tested with 2.13 and 2.15). A test includes both headers, so that the compiler compares
// them.
#pragma once

#include <cstdint>
#include <string_view>

#include "regplug/detail/bind_symbols.h"

struct AtenTensorOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
using AOTITorchError = std::int32_t;  // 0: success

extern "C" {
#include "regplug/detail/shim_functions.inc"
// The error of the last call that failed in this thread. Weak: without it only the text is lost.
__attribute__((weak)) const char* torch_exception_get_what_without_backtrace();
}

namespace regplug::detail {

// The reason of the last call that failed in this thread; null when torch does not say.
inline const char* shim_error() {
  return torch_exception_get_what_without_backtrace == nullptr ? nullptr : torch_exception_get_what_without_backtrace();
}

// What the dynamic linker gets: it finds libtorch's functions by itself. Throws Fault when it is no library for this
// machine.
inline std::string_view linked(std::string_view library) {
  check_library(library);
  return library;
}

}  // namespace regplug::detail
