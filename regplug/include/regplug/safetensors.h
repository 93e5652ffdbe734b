// Strict reader of safetensors files. docs/bundle.md lists the rules; a message begins with the name of its rule.
#pragma once

#include <fcntl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "regplug/detail/bytes.h"
#include "regplug/detail/folder.h"
#include "regplug/detail/json_fields.h"
#include "regplug/detail/strict_json.h"
#include "regplug/detail/translate_errors.h"
#include "regplug/dtype.h"
#include "regplug/error.h"

namespace regplug {

// One tensor in the bytes of a SafeTensors, in C order, little-endian, possibly unaligned.
struct TensorBytes {
  std::string dtype;  // torch's name: "float32"
  std::vector<std::int64_t> shape;
  std::string_view bytes;

  std::string signature() const { return dtype + " " + detail::format_list(shape); }
};

// The tensors and metadata of a file. Owns its bytes; copies share them.
class SafeTensors {
 public:
  SafeTensors() = default;

  // Throws Error, "LABEL: RULE: DETAIL."; a label is "bundle DIR: weights.safetensors".
  SafeTensors(detail::Bytes bytes, const std::string& label) : bytes_(std::move(bytes)), label_(label) {
    const std::string_view all = bytes_.view();
    if (all.size() < 8) fail("size: expected at least 8 bytes, got " + std::to_string(all.size()));
    std::uint64_t length = 0;
    for (std::size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(all[i]);
    if (length > kMaxHeader || length > all.size() - 8) {
      fail("size: expected a header inside the file and within 1048576 bytes, got " + std::to_string(length));
    }
    Json header = parse_header(all.substr(8, static_cast<std::size_t>(length)));
    const detail::FreeAtEnd freed(header);
    read(header, all.substr(8 + static_cast<std::size_t>(length)));
  }

  SafeTensors(std::string bytes, const std::string& label) : SafeTensors(detail::Bytes(std::move(bytes)), label) {}

  // The most that a file holds besides its data: the header and the eight bytes of its length.
  static constexpr std::uint64_t kMaxOverhead = (std::uint64_t{1} << 20) + 8;
  static constexpr std::uint64_t kMaxHeader = kMaxOverhead - 8;
  static constexpr std::size_t kMaxTensors = 4096;

  static bool is_tensor_name(const std::string& name) {
    return !name.empty() && name.size() <= kMaxName && name != "__metadata__" &&
           name.find_first_not_of(detail::kNameLetters) == std::string::npos;
  }

  const std::map<std::string, TensorBytes>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // Throws Error when there is no such tensor.
  const TensorBytes& at(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw Error(label_ + ": tensor '" + name + "': missing.");
    return found->second;
  }

 private:
  static constexpr std::size_t kMaxRank = 8;
  static constexpr std::size_t kMaxName = 256;
  static constexpr std::size_t kMaxMetadataKeys = 1024;
  static constexpr std::size_t kMaxMetadataBytes = std::size_t{1} << 19;
  static constexpr std::uint64_t kBytes = std::uint64_t{std::numeric_limits<std::int64_t>::max()};

  using Span = std::pair<std::uint64_t, std::uint64_t>;  // begin and end of a tensor's bytes

  // `text` is "RULE: DETAIL".
  [[noreturn]] void fail(const std::string& text) const { throw Error(label_ + ": " + text + "."); }

  Json parse_header(std::string_view text) const {
    const std::size_t last = text.find_last_not_of(' ');
    if (text.substr(0, 1) != "{" || text[last] != '}') {
      fail("header: expected a JSON object from '{' to '}', then nothing but spaces");
    }
    try {
      return detail::parse_json(text);
    } catch (const detail::DuplicateKey& error) {
      fail(std::string("duplicate: ") + error.what());
    } catch (const Error&) {
      fail("header: expected a JSON object in UTF-8");
    }
  }

  // nlohmann sorts maps by the bytes of their keys, which is the order of code points.
  void read(const Json& header, std::string_view data) {
    const bool described = header.contains("__metadata__");
    if (described) read_metadata(header["__metadata__"]);
    const std::size_t count = header.size() - (described ? 1 : 0);
    if (count > kMaxTensors) fail("name: expected at most 4096 tensors, got " + std::to_string(count));
    std::vector<std::pair<Span, std::string>> spans;
    for (const auto& [name, entry] : header.items()) {
      if (name != "__metadata__") spans.emplace_back(read_tensor(name, entry), name);
    }
    std::sort(spans.begin(), spans.end());
    std::uint64_t end = 0;
    for (const auto& [span, name] : spans) {
      if (span.first != end) {
        fail("offsets: tensor '" + name + "': expected begin " + std::to_string(end) + ", got " +
             std::to_string(span.first));
      }
      end = span.second;
    }
    if (end != data.size()) {
      fail("offsets: expected tensors over " + std::to_string(data.size()) + " bytes, got " + std::to_string(end));
    }
    for (const auto& [span, name] : spans) {
      const auto begin = static_cast<std::size_t>(span.first);
      tensors_[name].bytes = data.substr(begin, static_cast<std::size_t>(span.second) - begin);
    }
    check_booleans();
  }

  void read_metadata(const Json& entry) {
    if (!entry.is_object()) fail("metadata: expected an object, got " + detail::format_value(entry));
    if (entry.size() > kMaxMetadataKeys) {
      fail("metadata: expected at most 1024 keys, got " + std::to_string(entry.size()));
    }
    std::size_t size = 0;
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) fail("metadata: expected strings, got " + detail::format_value(value));
      const auto& text = metadata_[key] = value.get<std::string>();
      size += key.size() + text.size();
    }
    if (size > kMaxMetadataBytes) fail("metadata: expected at most 524288 bytes, got " + std::to_string(size));
  }

  // Fills in everything except the bytes.
  Span read_tensor(const std::string& name, const Json& entry) {
    if (!is_tensor_name(name)) {
      fail("name: expected 1 to 256 letters, digits, '_', '.' and '-', got " + detail::format_value(name));
    }
    const std::string of_tensor = ": tensor '" + name + "'";
    if (!entry.is_object()) fail("tensor" + of_tensor + ": expected an object, got " + detail::format_value(entry));
    if (entry.size() != 3 || !entry.contains("dtype") || !entry.contains("shape") || !entry.contains("data_offsets")) {
      fail("tensor" + of_tensor + ": expected exactly dtype, shape, data_offsets, got " +
           detail::format_value(detail::keys_of(entry.get_ref<const Json::object_t&>())));
    }
    const auto is_said = [&](const detail::DtypeInfo& known) { return detail::is_text(entry["dtype"], known.stored); };
    const auto dtype = std::find_if(detail::kDtypes.begin(), detail::kDtypes.end(), is_said);
    if (dtype == detail::kDtypes.end()) {
      fail("dtype" + of_tensor + ": expected one of F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL, got " +
           detail::format_value(entry["dtype"]));
    }
    TensorBytes tensor{dtype->name, integers("shape" + of_tensor, "sizes", entry["shape"]), {}};
    const std::uint64_t size = byte_size("shape" + of_tensor, dtype->size, tensor.shape);
    const std::vector<std::int64_t> offsets = integers("offsets" + of_tensor, "offsets", entry["data_offsets"]);
    if (offsets.size() != 2 || offsets[0] > offsets[1]) {
      fail("offsets" + of_tensor + ": expected begin and end, begin <= end, got " + detail::format_value(offsets));
    }
    const Span span{static_cast<std::uint64_t>(offsets[0]), static_cast<std::uint64_t>(offsets[1])};
    if (span.second - span.first != size) {
      fail("bytes" + of_tensor + ": expected " + std::to_string(size) + " bytes, got " +
           std::to_string(span.second - span.first));
    }
    if (span.first % dtype->size != 0) {
      fail("alignment" + of_tensor + ": expected a multiple of " + std::to_string(dtype->size) + ", got " +
           std::to_string(span.first));
    }
    tensors_.emplace(name, std::move(tensor));
    return span;
  }

  std::vector<std::int64_t> integers(const std::string& where, const std::string& what, const Json& list) const {
    if (!list.is_array()) fail(where + ": expected a list of " + what + ", got " + detail::format_value(list));
    std::vector<std::int64_t> numbers;
    for (const Json& item : list) {
      const std::optional<std::int64_t> number = detail::plain_integer(item, 0);
      if (!number) {
        fail(where + ": expected " + what + " in plain digits, below 2^53, got " + detail::format_value(item));
      }
      numbers.push_back(*number);
    }
    return numbers;
  }

  std::uint64_t byte_size(const std::string& where, std::size_t item, const std::vector<std::int64_t>& shape) const {
    if (shape.size() > kMaxRank) fail(where + ": expected at most 8 sizes, got " + std::to_string(shape.size()));
    bool empty = false;
    std::uint64_t size = item;
    for (const std::int64_t length : shape) {
      const auto factor = static_cast<std::uint64_t>(length);
      empty = empty || factor == 0;
      if (factor == 0) continue;  // skipped, because torch's strides multiply the other sizes too
      if (size > kBytes / factor) fail(where + ": expected fewer than 2^63 bytes, got " + detail::format_value(shape));
      size *= factor;
    }
    return empty ? 0 : size;
  }

  // C++ and torch do not define what a boolean byte other than 0 and 1 means.
  void check_booleans() const {
    for (const auto& [name, tensor] : tensors_) {
      if (tensor.dtype != "bool") continue;
      const std::size_t wrong = tensor.bytes.find_first_not_of(std::string_view("\0\1", 2));
      if (wrong == std::string_view::npos) continue;
      fail("bool: tensor '" + name + "': expected bytes 0 and 1, got " +
           std::to_string(static_cast<unsigned char>(tensor.bytes[wrong])));
    }
  }

  detail::Bytes bytes_;
  std::string label_;
  std::map<std::string, TensorBytes> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Reads a file, through symbolic links too. Throws Error when it cannot be read or breaks a rule of docs/bundle.md.
inline SafeTensors read_safetensors(const std::string& path) {
  return detail::translate_errors(path, [&] {
    const detail::File file(AT_FDCWD, path, path, /*follow_links=*/true, ".");
    return SafeTensors(file.read_all(), path);
  });
}

}  // namespace regplug
