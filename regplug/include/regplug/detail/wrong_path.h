// Says what a path leads to when it does not lead to a bundle's folder.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

namespace regplug::detail {

constexpr std::string_view kLfsPointerStart = "version https://git-lfs.github.com/spec/";
constexpr const char* kLfsPointer = "a Git LFS pointer, not the file itself; run `git lfs pull`";

// The first bytes of an open regular file, at most 512.
inline std::string first_bytes(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) return "";
  char begin[512];
  const ::ssize_t got = ::pread(fd, begin, sizeof begin, 0);
  return got > 0 ? std::string(begin, static_cast<std::size_t>(got)) : "";
}

// Whether an open file of this size is a Git LFS pointer instead of the content.
inline bool is_lfs_pointer(int fd, std::size_t size) {
  return size <= 1024 && first_bytes(fd).rfind(kLfsPointerStart, 0) == 0;
}

// The kind of archive with these first bytes; empty for none.
inline std::string archive_kind(const std::string& begin) {
  constexpr std::pair<std::string_view, const char*> kinds[] = {
      {"PK\x03\x04", "zip"}, {"\x1f\x8b", "gzip"},         {"BZh", "bzip2"},
      {"\xfd\x37zXZ", "xz"}, {"\x28\xb5\x2f\xfd", "zstd"}, {"7z\xbc\xaf\x27\x1c", "7z"}};
  if (begin.size() > 257 && begin.compare(257, 5, "ustar") == 0) return "tar";
  for (const auto& [magic, kind] : kinds) {
    if (begin.compare(0, magic.size(), magic) == 0) return kind;
  }
  return "";
}

// Whether a file with these first bytes is a web page.
inline bool is_web_page(const std::string& begin) {
  std::string text;
  for (const char letter : begin.substr(std::min(begin.find_first_not_of(" \t\n\v\f\r"), begin.size()), 14)) {
    text += letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter;
  }
  return text.rfind("<!doctype html", 0) == 0 || text.rfind("<html", 0) == 0;
}

// What is at a path that is not a folder, and what to do.
inline std::string describe_non_folder(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const int fd = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
  const std::string begin = fd < 0 ? "" : first_bytes(fd);
  if (fd >= 0) ::close(fd);
  if (begin.rfind(kLfsPointerStart, 0) == 0) return kLfsPointer;
  std::string folder = path.substr(0, path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/') + 1);
  struct stat status {};
  if (::lstat((folder + "manifest.json").c_str(), &status) == 0) {
    while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
    return "a file in a bundle, not its folder; use " + (folder.empty() ? "." : folder);
  }
  const std::string kind = archive_kind(begin);
  if (!kind.empty()) return "a " + kind + " archive, not a folder; unpack it first";
  return is_web_page(begin) ? "a web page, not a folder; download the file itself" : "not a folder";
}

}  // namespace regplug::detail
