// Every exception that leaves the library becomes an Error that names its object.
#pragma once

#include <cxxabi.h>

#include <exception>
#include <new>
#include <string>
#include <string_view>

#include "regplug/error.h"

namespace regplug::detail {

// Other libraries report over many lines (stack traces, backtraces); the first one says what happened.
inline std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

inline std::string first_line_of(const std::exception& error) { return first_line(error.what()); }

// Calls `call()`. What it throws becomes an Error, "OBJECT: LINE", where `one_line` gives the line. An Error that
// already names its object passes unchanged.
template <typename Call>
auto translate_errors(std::string_view object, Call call,
                      std::string (*one_line)(const std::exception&) = first_line_of) -> decltype(call()) {
  const auto error_of = [&](const std::string& line) { return Error(std::string(object) + ": " + line); };
  try {
    return call();
  } catch (const Fault& fault) {
    throw error_of(fault.what());
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {  // also when a program asks for 2^60 bytes
    throw error_of("expected enough memory, got none.");
  } catch (const std::exception& error) {
    throw error_of(one_line(error));
#ifdef __GLIBCXX__  // libc++ does not catch it
  } catch (const abi::__forced_unwind&) {  // the thread is being cancelled
    throw;
#endif
  } catch (...) {
    throw error_of("expected a std::exception, got another type.");
  }
}

}  // namespace regplug::detail
