// Writes to a descriptor. Beyond the limit of a file's size the kernel ends the process, unless SIGXFSZ is blocked.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <ctime>
#include <string_view>

namespace regplug::detail {

// Blocks SIGXFSZ in this thread for its lifetime. A signal that was pending before stays pending; a new one is removed,
// because the write has reported it as EFBIG. Keeps errno.
class FileSizeSignalBlocked {
 public:
  FileSizeSignalBlocked() : pending_(pending()) { ::pthread_sigmask(SIG_BLOCK, only(), &before_); }
  FileSizeSignalBlocked(const FileSizeSignalBlocked&) = delete;
  FileSizeSignalBlocked& operator=(const FileSizeSignalBlocked&) = delete;
  ~FileSizeSignalBlocked() {
    const int kept_errno = errno;
    const timespec no_time{};
    if (!pending_ && pending()) ::sigtimedwait(only(), nullptr, &no_time);
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    errno = kept_errno;
  }

 private:
  static const sigset_t* only() {
    static const sigset_t set = [] {
      sigset_t made;
      ::sigemptyset(&made);
      ::sigaddset(&made, SIGXFSZ);
      return made;
    }();
    return &set;
  }

  static bool pending() {
    sigset_t set;
    ::sigpending(&set);
    return ::sigismember(&set, SIGXFSZ) == 1;
  }

  bool pending_;
  sigset_t before_{};
};

// Whether all bytes were written; if not, errno has the reason.
inline bool write_all(int fd, std::string_view bytes) {
  const FileSizeSignalBlocked blocked;
  while (!bytes.empty()) {
    const ::ssize_t done = ::write(fd, bytes.data(), bytes.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(done));
  }
  return true;
}

}  // namespace regplug::detail
