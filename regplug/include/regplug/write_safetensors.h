// Writes tensors to a safetensors file, whole or not at all. Includes no torch.
#pragma once

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
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "regplug/dtype.h"
#include "regplug/error.h"
#include "regplug/folder.h"
#include "regplug/json.h"
#include "regplug/view.h"

namespace regplug {
namespace detail {

// A file beside the one it becomes; gone again unless `put_in_place()` was called.
class NewFile {
 public:
  explicit NewFile(const std::string& path) : path_(path), fd_(-1) {
    const std::size_t slash = path.rfind('/');
    folder_ = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    const std::string begin = (slash == std::string::npos ? "" : folder_) + "." + path.substr(slash + 1) + ".regplug-" +
                              std::to_string(::getpid()) + "-";
    struct stat status {};
    // a rename would take the place of a device just as well
    if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) throw Error(path + ": not a regular file.");
    for (int attempt = 0; fd_.get() < 0; ++attempt) {
      temporary_ = begin + std::to_string(attempt);
      fd_ = Descriptor(::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
      if (fd_.get() < 0 && errno != EEXIST) fail();
    }
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
  }

  void write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ::ssize_t done = ::write(fd_.get(), bytes.data(), bytes.size());
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) fail();
      bytes.remove_prefix(static_cast<std::size_t>(done));
    }
  }

  void put_in_place() {
    if (::fsync(fd_.get()) != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0) fail();
    temporary_.clear();
    const Descriptor folder(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder.get() >= 0) ::fsync(folder.get());  // the new file is there; this is for a power cut now
  }

 private:
  [[noreturn]] void fail() const { throw Error(path_ + ": " + std::strerror(errno) + "."); }

  std::string path_;
  std::string folder_;
  std::string temporary_;
  Descriptor fd_;
};

}  // namespace detail

// Throws Error, and leaves what stood at `path`, when it cannot be written.
inline void write_safetensors(const std::string& path, const std::map<std::string, TensorView>& tensors) {
  // Large items first: then every tensor begins at a multiple of its item size without holes between them.
  std::vector<std::pair<std::string, TensorView>> order(tensors.begin(), tensors.end());
  std::stable_sort(order.begin(), order.end(), [](const auto& one, const auto& other) {
    return item_size(one.second.dtype()) > item_size(other.second.dtype());
  });
  Json header = Json::object();
  std::size_t end = 0;
  for (const auto& [name, view] : order) {
    const std::size_t begin = end;
    end += view.nbytes();
    header[name] = {{"dtype", detail::described(view.dtype()).stored},
                    {"shape", std::vector<std::int64_t>(view.sizes().begin(), view.sizes().end())},
                    {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length;
  for (std::size_t i = 0; i < 8; ++i) length += static_cast<char>(static_cast<unsigned char>(text.size() >> (8 * i)));

  detail::NewFile file(path);
  file.write(length + text);
  for (const auto& [name, view] : order) {
    if (view.nbytes() == 0) continue;
    const Tensor contiguous = view.is_contiguous() ? Tensor(view.dtype(), view.sizes(), view.data(), nullptr)
                                                   : Tensor::copy_of(view);
    file.write({contiguous.view().data(), contiguous.nbytes()});
  }
  file.put_in_place();
}

}  // namespace regplug
