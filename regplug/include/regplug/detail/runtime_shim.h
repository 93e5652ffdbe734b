// What regplug::runtime defines in place of libtorch: the part of torch's C shim that loads and runs a model library,
// and the table of all functions that the library may call.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "regplug/detail/bind_symbols.h"

#if !defined(__GLIBC__) || !__GLIBC_PREREQ(2, 28)
#error "regplug::runtime needs glibc 2.28 or newer: see bind_symbols.h"
#endif

struct AtenTensorOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
using AOTITorchError = std::int32_t;  // 0: success

namespace regplug::runtime {

// The address of a function that a program may call; null when the runtime lacks it.
const void* find_function(std::string_view name);

#include "regplug/detail/shim_functions.inc"

// The reason of the last call that failed in this thread.
const char* shim_error();

}  // namespace regplug::runtime

namespace regplug::detail {

using namespace regplug::runtime;

// What the dynamic linker gets. Throws Fault when the library calls a function that the runtime lacks.
inline std::string linked(std::string_view library) { return bind_symbols(library, runtime::find_function); }

}  // namespace regplug::detail
