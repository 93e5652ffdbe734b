// A shared library that the dynamic linker loads from memory. Its code is the bundle author's.
#pragma once

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <new>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>

#include "regplug/detail/folder.h"
#include "regplug/detail/translate_errors.h"
#include "regplug/detail/write_all.h"
#include "regplug/error.h"

// The runtime of the sanitizers ends a process that opens a library with RTLD_DEEPBIND.
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

// The system has no space for a library's bytes, or no /proc. This is not an error of the library.
class OutOfSpace : public Fault {
 public:
  using Fault::Fault;
};

class SharedObject {
 public:
  // Throws Fault. The caller holds `loading_lock`, as for every member.
  explicit SharedObject(std::string_view bytes)
      : file_(sealed(bytes)),
        path_(proc_path(file_)),
        handle_(opened(path_)) {
    if (handle_ == nullptr) {
      if (errno == ENOMEM) throw std::bad_alloc();  // the linker may say something else, such as "no such file"
      std::string text = first_line(::dlerror());
      if (::access("/proc/self/fd", F_OK) != 0) {
        throw OutOfSpace("expected /proc, through which a program is opened, got none; mount it");
      }
      if (text.rfind(path_ + ": ", 0) == 0) text.erase(0, path_.size() + 2);
      throw Fault(text);
    }
    initialize_cerr();
  }
  SharedObject(const SharedObject&) = delete;
  SharedObject& operator=(const SharedObject&) = delete;
  ~SharedObject() {
    // The dynamic linker looks a library up by path first: if the descriptor number were reused, it would find this
    // one.
    if (handle_ != nullptr && !unload()) file_.release();
  }

  // Null when there is no such symbol.
  void* symbol(const char* name) const { return ::dlsym(handle_, name); }

  // Whether the dynamic linker unloaded the library. If not, it stays usable. The linker keeps a library that has a C++
  // symbol unique in the process, has a pending destructor in a thread, or has other users.
  bool unload() {
    ::dlclose(handle_);
    handle_ = ::dlopen(path_.c_str(), RTLD_NOW | RTLD_NOLOAD);
    return handle_ == nullptr;
  }

 private:
  // Its own symbols come first. Otherwise another model library in the global scope (linked, preloaded or opened with
  // RTLD_GLOBAL) would replace them.
  static void* opened(const std::string& path) {
    errno = 0;
    return ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | REGPLUG_DEEPBIND);
  }

  // With RTLD_DEEPBIND the library uses the std::cerr of libstdc++. Where the executable holds a copy of that object (a
  // copy relocation), only the copy is initialized, and a library that prints an error would end the process.
  void initialize_cerr() const {
    void* const used = symbol("_ZSt4cerr");
    void* vtable = nullptr;
    if (used != nullptr) std::memcpy(&vtable, used, sizeof vtable);
    if (used != nullptr && vtable == nullptr) new (used) std::ostream(std::cerr.rdbuf());
  }

  // The bytes as a file that nobody can change: sealed in memory, or where the system does not support that (seccomp,
  // gVisor) an unnamed file that nobody else can open.
  static Descriptor sealed(std::string_view bytes) {
    Descriptor file(::memfd_create("regplug-program", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    const bool in_memory = file.get() >= 0;
    if (!in_memory && (errno == ENOSYS || errno == EPERM || errno == EACCES)) file = unnamed();
    constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
    if (file.get() < 0 || !write_all(file.get(), bytes) ||
        (in_memory && ::fcntl(file.get(), F_ADD_SEALS, kSeals) != 0)) {
      throw OutOfSpace((in_memory ? "in memory: " : "in a temporary file: ") + std::string(std::strerror(errno)));
    }
    // the read-only descriptor replaces the writable one
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
