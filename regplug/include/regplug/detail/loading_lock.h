// The lock that every load of a program holds.
#pragma once

#include <mutex>

namespace regplug::detail {

// torch's loaders and the dynamic linker run code that shares state without locks: two loads at the same time, of
// either backend, crash now and then.
inline std::mutex loading_lock;

}  // namespace regplug::detail
