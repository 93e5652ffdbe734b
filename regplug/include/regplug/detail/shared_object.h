// A shared library that the dynamic linker reads from memory. Its code is somebody else's.
#pragma once

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "regplug/detail/folder.h"
#include "regplug/detail/write_all.h"
#include "regplug/error.h"

// The sanitizers' runtime ends a process that opens a library with RTLD_DEEPBIND.
#if !defined(RTLD_DEEPBIND) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define REGPLUG_DEEPBIND 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define REGPLUG_DEEPBIND 0
#endif
#endif
#ifndef REGPLUG_DEEPBIND
#define REGPLUG_DEEPBIND RTLD_DEEPBIND
#endif

namespace regplug::detail {

// The system has no room for a library's bytes: no fault of the library.
class NoRoom : public Fault {
 public:
  using Fault::Fault;
};

class SharedObject {
 public:
  // Throws Fault. The caller holds `torch_loading`, as for everything else here.
  explicit SharedObject(std::string_view bytes)
      : file_(sealed(bytes)),
        path_(proc_path(file_)),
        // Its own symbols come first: those of another library of the same kind in the global scope, linked,
        // preloaded or opened with RTLD_GLOBAL, would be taken instead of them.
        handle_(::dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL | REGPLUG_DEEPBIND)) {
    if (handle_ != nullptr) return;
    std::string text = first_line(::dlerror());
    if (text.rfind(path_ + ": ", 0) == 0) text.erase(0, path_.size() + 2);
    throw Fault(text);
  }
  SharedObject(const SharedObject&) = delete;
  SharedObject& operator=(const SharedObject&) = delete;
  ~SharedObject() {
    // The dynamic linker knows a library by its path first: under a number that is used again it would find this one.
    if (handle_ != nullptr && !unload()) file_.release();
  }

  // Null where it has no such symbol.
  void* symbol(const char* name) const { return ::dlsym(handle_, name); }

  // Whether the dynamic linker let the library go. If not it is as it was; it keeps one that has a symbol of C++ that
  // must be unique in the process, that a thread has a destructor of, or that somebody else uses.
  bool unload() {
    ::dlclose(handle_);
    handle_ = ::dlopen(path_.c_str(), RTLD_NOW | RTLD_NOLOAD);
    return handle_ == nullptr;
  }

 private:
  // The bytes as a file that nobody can change any more: in memory, or where the system has no such files (seccomp,
  // gVisor) one without a name, which nobody else can open.
  static Descriptor sealed(std::string_view bytes) {
    Descriptor file(::memfd_create("regplug-program", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    const bool in_memory = file.get() >= 0;
    if (!in_memory && (errno == ENOSYS || errno == EPERM || errno == EACCES)) file = unnamed();
    constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
    if (file.get() < 0 || !write_all(file.get(), bytes) ||
        (in_memory && ::fcntl(file.get(), F_ADD_SEALS, kSeals) != 0)) {
      throw NoRoom((in_memory ? "in memory: " : "in a temporary file: ") + std::string(std::strerror(errno)));
    }
    // written to through no descriptor any more
    return in_memory ? std::move(file) : Descriptor(::open(proc_path(file).c_str(), O_RDONLY | O_CLOEXEC));
  }

  static Descriptor unnamed() {
    const char* named = std::getenv("TMPDIR");
    const std::string folder = named != nullptr && *named != '\0' ? named : "/tmp";
    std::string path = folder + "/regplug-program-XXXXXX";
    Descriptor file(::mkostemp(path.data(), O_CLOEXEC));
    if (file.get() >= 0) ::unlink(path.c_str());
    return file;
  }

  static std::string proc_path(const Descriptor& file) { return "/proc/self/fd/" + std::to_string(file.get()); }

  Descriptor file_;
  std::string path_;
  void* handle_;
};

}  // namespace regplug::detail
