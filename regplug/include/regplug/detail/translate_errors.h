// What stands around a program of others: one lock for torch's loaders, and one type for whatever it throws.
#pragma once

#include <cxxabi.h>

#include <exception>
#include <mutex>
#include <new>
#include <string>

#include "regplug/error.h"

namespace regplug::detail {

// torch's loaders and the dynamic linker run code that shares state without locks: opening two programs at the same
// time, of whatever kind, crashes now and then.
inline std::mutex torch_loading;

// For what is left of a bundle that was moved from.
[[noreturn]] inline void refuse_moved_from() {
  throw Error("bundle: expected an open bundle, got one that was moved from.");
}

// Calls `call()`; what it throws comes out as Error, "OBJECT: LINE".
template <typename Call>
auto as_error(const std::string& object, Call call) -> decltype(call()) {
  try {
    return call();
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {  // also what a program wants that asks for 2^60 bytes
    throw Error(object + ": expected memory enough, got none.");
  } catch (const std::exception& error) {
    throw Error(object + ": " + first_line(error.what()));
  } catch (const abi::__forced_unwind&) {  // the thread is cancelled
    throw;
  } catch (...) {
    throw Error(object + ": expected an exception of C++'s own, got another.");
  }
}

}  // namespace regplug::detail
