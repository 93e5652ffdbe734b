// Opens a folder once, and its files relative to that handle: when a bundle is replaced during a read, the reader sees
// the old or the new one, never a mixture.
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "regplug/detail/bytes.h"
#include "regplug/detail/json_fields.h"
#include "regplug/detail/wrong_path.h"
#include "regplug/error.h"

namespace regplug::detail {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// Throws Error when a path contains NUL, because the system would cut it there. `label` begins the message.
inline const char* checked_path(const std::string& path, const std::string& label) {
  if (path.find('\0') == std::string::npos) return path.c_str();
  throw Error(label + ": expected a path without NUL, got one with NUL.");
}

// A file does not exist: the one error that a folder replaced during a read explains.
class MissingFile : public Error {
 public:
  using Error::Error;
};

// A regular file, open for one read. `label` begins every message: "bundle DIR: FILE".
class File {
 public:
  // Does not wait for the writer of a FIFO. Follows symbolic links only if `follow_links`.
  File(int folder, const std::string& path, std::string label, bool follow_links, const std::string& if_missing)
      : label_(std::move(label)), fd_(::openat(folder, checked_path(path, label_), flags(follow_links))) {
    if (fd_.get() < 0) {
      if (errno == ENOENT) throw MissingFile(label_ + ": missing" + if_missing);
      if (errno == ELOOP) throw Error(label_ + ": a symbolic link; use follow_links to follow it.");
      // a socket, or a device without a driver
      if (errno == ENXIO || errno == ENODEV) throw Error(label_ + ": not a regular file.");
      throw Error(label_ + ": " + std::strerror(errno) + ".");
    }
    struct stat status {};
    if (::fstat(fd_.get(), &status) != 0 || !S_ISREG(status.st_mode)) throw Error(label_ + ": not a regular file.");
    size_ = static_cast<std::uint64_t>(status.st_size);
    if (is_lfs_pointer(fd_.get(), static_cast<std::size_t>(size_))) throw Error(label_ + ": " + kLfsPointer + ".");
  }

  const std::string& label() const { return label_; }
  std::uint64_t size() const { return size_; }

  // Reads up to `count` bytes; gives fewer only at the end of the file.
  std::size_t read(char* place, std::size_t count) const {
    std::size_t done = 0;
    while (done < count) {
      const ::ssize_t got = ::read(fd_.get(), place + done, count - done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw Error(label_ + ": " + std::strerror(errno) + ".");
      if (got == 0) break;
      done += static_cast<std::size_t>(got);
    }
    return done;
  }

  // The whole file, of the size it had when it was opened.
  Bytes read_all() const {
    try {
      return Bytes::filled(static_cast<std::size_t>(size_),
                           [&](char* place, std::size_t count) { return read(place, count); });
    } catch (const std::bad_alloc&) {
      throw Error(label_ + ": expected memory for " + std::to_string(size_) + " bytes, got none.");
    }
  }

 private:
  static int flags(bool follow_links) {
    return O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (follow_links ? 0 : O_NOFOLLOW);
  }

  std::string label_;
  Descriptor fd_;
  std::uint64_t size_ = 0;
};

// A directory entry, which may be any bytes; all except the letters of file names become \xHH.
inline std::string escape_file_name(const std::string& name) {
  std::string text;
  for (const char letter : name) {
    char escaped[8];
    std::snprintf(escaped, sizeof escaped, "\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(letter)));
    text += is_name({&letter, 1}) ? std::string(1, letter) : escaped;
  }
  return text;
}

class Folder {
 public:
  Folder(std::string path, bool follow_links)
      : path_(std::move(path)),
        follow_links_(follow_links),
        fd_(::open(checked_path(path_, label()), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    if (fd_.get() >= 0) return;
    if (errno == ENOENT) throw Error(label() + ": no such folder.");
    if (errno == ENOTDIR) throw Error(label() + ": " + describe_non_folder(path_) + ".");
    throw Error(label() + ": " + std::strerror(errno) + ".");
  }

  std::string label() const { return "bundle " + path_; }

  File open(const std::string& name, const std::string& if_missing) const {
    return File(fd_.get(), name, label() + ": " + name, follow_links_, if_missing);
  }

  // All entries, sorted, so that the same folder always gives the same message.
  std::vector<std::string> names() const {
    // A separate handle, because duplicated handles share one read position.
    const int fd = ::openat(fd_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const std::unique_ptr<DIR, int (*)(DIR*)> entries(fd < 0 ? nullptr : ::fdopendir(fd), &::closedir);
    if (!entries) {
      if (fd >= 0) ::close(fd);
      throw Error(label() + ": " + std::strerror(errno) + ".");
    }
    std::vector<std::string> found;
    errno = 0;
    while (const dirent* entry = ::readdir(entries.get())) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") found.push_back(name);
      if (found.size() > kMaxEntries) {
        throw Error(label() + ": expected at most " + std::to_string(kMaxEntries) + " files, got more.");
      }
      errno = 0;
    }
    if (errno != 0) throw Error(label() + ": " + std::strerror(errno) + ".");
    std::sort(found.begin(), found.end());
    return found;
  }

  // Whether the path no longer leads to this folder.
  bool replaced() const {
    struct stat here {};
    struct stat there {};
    if (::fstat(fd_.get(), &here) != 0 || ::stat(path_.c_str(), &there) != 0) return true;
    return here.st_ino != there.st_ino || here.st_dev != there.st_dev;
  }

 private:
  static constexpr std::size_t kMaxEntries = 4096;

  std::string path_;
  bool follow_links_;
  Descriptor fd_;
};

// Calls `read(folder)`, and again when a file was missing because the folder was replaced during the read.
template <typename Read>
auto read_folder(const std::string& path, bool follow_links, Read read) {
  // A writer replaces a bundle in milliseconds, so this many in a row are not a coincidence.
  constexpr int kMaxAttempts = 100;
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    const Folder folder(path, follow_links);
    try {
      return read(folder);
    } catch (const MissingFile&) {
      if (!folder.replaced()) throw;
    }
  }
  throw Error("bundle " + path + ": replaced " + std::to_string(kMaxAttempts) + " times while it was read; try again.");
}

}  // namespace regplug::detail
