// A block of bytes; copies share it.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace regplug::detail {

class Bytes {
 public:
  Bytes() = default;

  explicit Bytes(std::string text) {
    const auto kept = std::make_shared<const std::string>(std::move(text));
    data_ = std::shared_ptr<const char>(kept, kept->data());
    size_ = kept->size();
  }

  // Allocates `most` bytes and calls `fill(place, most)`, which writes them and returns how many. Unlike a std::string
  // the memory is not zeroed first: weights may need a gigabyte.
  template <typename Fill>
  static Bytes filled(std::size_t most, Fill fill) {
    const std::shared_ptr<char> memory(new char[most], std::default_delete<char[]>());
    Bytes bytes;
    bytes.size_ = fill(memory.get(), most);
    bytes.data_ = memory;
    return bytes;
  }

  std::string_view view() const { return {data_.get(), size_}; }
  std::size_t size() const { return size_; }

 private:
  std::shared_ptr<const char> data_;
  std::size_t size_ = 0;
};

}  // namespace regplug::detail
