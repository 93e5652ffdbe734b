// A block of bytes that copies share.
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

  // Makes room for `most` bytes and has `fill(place, most)` write them; it returns how many it wrote. The room is not
  // zeroed first, as a std::string would be: weights may fill a gigabyte.
  template <typename Fill>
  static Bytes filled(std::size_t most, Fill fill) {
    const std::shared_ptr<char> room(new char[most], std::default_delete<char[]>());
    Bytes bytes;
    bytes.size_ = fill(room.get(), most);
    bytes.data_ = room;
    return bytes;
  }

  std::string_view view() const { return {data_.get(), size_}; }
  std::size_t size() const { return size_; }

 private:
  std::shared_ptr<const char> data_;
  std::size_t size_ = 0;
};

}  // namespace regplug::detail
