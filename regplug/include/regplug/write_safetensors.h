// Writes tensors to a safetensors file atomically. Includes no torch.
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

#include "regplug/detail/folder.h"
#include "regplug/detail/strict_json.h"
#include "regplug/detail/translate_errors.h"
#include "regplug/detail/write_all.h"
#include "regplug/dtype.h"
#include "regplug/error.h"
#include "regplug/safetensors.h"
#include "regplug/tensor.h"

namespace regplug {
namespace detail {

// A temporary file next to `path`; removed again unless `put_in_place()` was called.
class NewFile {
 public:
  explicit NewFile(const std::string& path) : path_(path), fd_(-1) {
    const std::size_t slash = path.rfind('/');
    folder_ = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    const std::string begin = (slash == std::string::npos ? "" : folder_) + "." + path.substr(slash + 1) + ".regplug-" +
                              std::to_string(::getpid()) + "-";
    struct stat status {};
    // a rename would replace a device too
    if (::stat(checked_path(path, path), &status) == 0 && !S_ISREG(status.st_mode)) {
      throw Error(path + ": not a regular file.");
    }
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
    if (!write_all(fd_.get(), bytes)) fail();
  }

  void put_in_place() {
    if (::fsync(fd_.get()) != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0) fail();
    temporary_.clear();
    const Descriptor folder(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder.get() >= 0) ::fsync(folder.get());  // so that the rename survives a power cut
  }

 private:
  [[noreturn]] void fail() const { throw Error(path_ + ": " + std::strerror(errno) + "."); }

  std::string path_;
  std::string folder_;
  std::string temporary_;
  Descriptor fd_;
};

// Rejects what SafeTensors would reject, except the length of the header and the bytes of booleans.
inline void check_readable(const std::string& path, const std::map<std::string, TensorView>& tensors) {
  if (tensors.size() > SafeTensors::kMaxTensors) {
    throw Error(path + ": name: expected at most 4096 tensors, got " + std::to_string(tensors.size()) + ".");
  }
  std::int64_t bytes = 0;
  for (const auto& [name, view] : tensors) {
    if (!SafeTensors::is_tensor_name(name)) {
      throw Error(path + ": name: expected 1 to 256 letters, digits, '_', '.' and '-', got " + format_value(name) +
                  ".");
    }
    const std::string label = path + ": tensor '" + name + "': ";
    if (!view.defined()) throw Error(label + "expected a tensor, got none.");
    const Sizes& sizes = view.sizes();
    const bool large = std::any_of(sizes.begin(), sizes.end(), [](std::int64_t size) { return size > kMaxInteger; });
    if (large || __builtin_add_overflow(bytes, static_cast<std::int64_t>(view.nbytes()), &bytes) ||
        bytes > kMaxInteger) {
      throw Error(label + "expected sizes and offsets below 2^53, got " + format_list(sizes) + ".");
    }
  }
}

// The bytes of a view in C order; `copy` owns them when the view is not contiguous.
inline std::string_view bytes_of(const std::string& label, const TensorView& view, Tensor& copy) {
  if (!view.is_contiguous()) copy = Tensor::copy_of(view);
  const std::string_view bytes(view.is_contiguous() ? view.data() : copy.view().data(), view.nbytes());
  if (view.dtype() == Dtype::boolean &&
      bytes.find_first_not_of(std::string_view("\0\1", 2)) != std::string_view::npos) {
    throw Error(label + ": expected bytes 0 and 1 in a bool tensor, got another.");
  }
  return bytes;
}

// The header, after its length.
inline std::string header_of(const std::string& path, const std::vector<std::pair<std::string, TensorView>>& order) {
  Json header = Json::object();
  std::size_t end = 0;
  for (const auto& [name, view] : order) {
    const std::size_t begin = end;
    end += view.nbytes();
    header[name] = {{"dtype", dtype_info(view.dtype()).stored},
                    {"shape", std::vector<std::int64_t>(view.sizes().begin(), view.sizes().end())},
                    {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > SafeTensors::kMaxHeader) {
    throw Error(path + ": size: expected a header within 1048576 bytes, got " + std::to_string(text.size()) + ".");
  }
  std::string length;
  for (std::size_t i = 0; i < 8; ++i) length += static_cast<char>(static_cast<unsigned char>(text.size() >> (8 * i)));
  return length + text;
}

inline void write_tensors(const std::string& path, const std::map<std::string, TensorView>& tensors) {
  check_readable(path, tensors);
  // Large items first, so that every tensor is aligned without gaps.
  std::vector<std::pair<std::string, TensorView>> order(tensors.begin(), tensors.end());
  std::stable_sort(order.begin(), order.end(), [](const auto& one, const auto& other) {
    return item_size(one.second.dtype()) > item_size(other.second.dtype());
  });
  const std::string header = header_of(path, order);
  NewFile file(path);
  file.write(header);
  for (const auto& [name, view] : order) {
    Tensor copy;
    file.write(bytes_of(path + ": tensor '" + name + "'", view, copy));
  }
  file.put_in_place();
}

}  // namespace detail

// Throws Error, and leaves an existing file unchanged, when `path` cannot be written, or when a bundle may not hold a
// tensor with such a name, shape or values.
inline void write_safetensors(const std::string& path, const std::map<std::string, TensorView>& tensors) {
  detail::translate_errors(path, [&] { detail::write_tensors(path, tensors); });
}

}  // namespace regplug
