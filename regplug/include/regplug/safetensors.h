// Strict reader of safetensors bytes; docs/bundle.md lists the rules, whose names begin the messages.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "regplug/bytes.h"
#include "regplug/dtype.h"
#include "regplug/error.h"
#include "regplug/json.h"

namespace regplug {

// One tensor inside the bytes of a SafeTensors, in C order, little-endian; they need not be aligned.
struct TensorBytes {
  std::string dtype;  // torch's name: "float32"
  std::vector<std::int64_t> shape;
  std::string_view bytes;

  std::string signature() const { return dtype + " " + detail::listed(shape); }
};

// Owns the bytes it was read from; copies share them.
class SafeTensors {
 public:
  SafeTensors() = default;

  // Throws Error, "RULE: DETAIL.", after `label` ("bundle DIR: weights.safetensors").
  SafeTensors(Bytes bytes, const std::string& label) : bytes_(std::move(bytes)), label_(label) {
    const std::string_view all = bytes_.view();
    if (all.size() < 8) fail("size: expected at least 8 bytes, got " + std::to_string(all.size()));
    std::uint64_t length = 0;
    for (std::size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(all[i]);
    if (length > kHeader || length > all.size() - 8) {
      fail("size: expected a header inside the file and within 1048576 bytes, got " + std::to_string(length));
    }
    const Json header = parse_header(all.substr(8, static_cast<std::size_t>(length)));
    read(header, all.substr(8 + static_cast<std::size_t>(length)));
  }

  SafeTensors(std::string bytes, const std::string& label) : SafeTensors(Bytes(std::move(bytes)), label) {}

  // What a file may have beside its data: the header and the eight bytes of its length.
  static constexpr std::uint64_t kOverhead = (std::uint64_t{1} << 20) + 8;

  const std::map<std::string, TensorBytes>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // Throws Error when the tensor is not there.
  const TensorBytes& at(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw Error(label_ + ": tensor '" + name + "': missing.");
    return found->second;
  }

 private:
  static constexpr std::uint64_t kHeader = kOverhead - 8;
  static constexpr std::size_t kTensors = 4096;
  static constexpr std::size_t kRank = 8;
  static constexpr std::size_t kName = 256;
  static constexpr std::uint64_t kLargest = std::uint64_t{std::numeric_limits<std::int64_t>::max()};

  // `text` is "RULE: DETAIL".
  [[noreturn]] void fail(const std::string& text) const { throw Error(label_ + ": " + text + "."); }

  Json parse_header(std::string_view text) const {
    if (text.empty() || text.front() != '{') fail("header: expected a JSON object that begins with '{'");
    try {
      return detail::parse_json(text.substr(0, text.find_last_not_of(' ') + 1));
    } catch (const detail::DuplicateKey& error) {
      fail(std::string("duplicate: ") + error.what());
    } catch (const Error&) {
      fail("header: expected a JSON object in UTF-8");
    }
  }

  void read(const Json& header, std::string_view data) {
    using Span = std::pair<std::uint64_t, std::uint64_t>;
    const bool described = header.contains("__metadata__");
    if (described) read_metadata(header["__metadata__"]);
    const std::size_t count = header.size() - (described ? 1 : 0);
    if (count > kTensors) fail("name: expected at most 4096 tensors, got " + std::to_string(count));
    std::vector<std::pair<Span, std::string>> spans;
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") continue;
      if (!named(name)) fail("name: expected letters, digits, '_', '.' and '-' (at most 256)");
      spans.emplace_back(read_tensor(name, entry), name);
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
  }

  void read_metadata(const Json& entry) {
    if (!entry.is_object()) fail("metadata: expected strings");
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) fail("metadata: expected strings");
      metadata_[key] = value.get<std::string>();
    }
  }

  // Fills in all but the bytes; returns where they begin and end.
  std::pair<std::uint64_t, std::uint64_t> read_tensor(const std::string& name, const Json& entry) {
    const std::string who = ": tensor '" + name + "': ";
    if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") || !entry.contains("shape") ||
        !entry.contains("data_offsets")) {
      fail("tensor" + who + "expected exactly dtype, shape and data_offsets");
    }
    const auto dtype = std::find_if(detail::kDtypes.begin(), detail::kDtypes.end(),
                                    [&](const detail::DtypeNames& known) { return entry["dtype"] == known.stored; });
    if (dtype == detail::kDtypes.end()) {
      fail("dtype" + who + "expected one of F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL");
    }
    TensorBytes tensor{dtype->name, {}, {}};
    const Json& shape = entry["shape"];
    std::uint64_t size = dtype->size;
    std::uint64_t counted = dtype->size;  // without the sizes that are 0: torch multiplies the others for its strides
    bool sized = shape.is_array() && shape.size() <= kRank;
    for (std::size_t i = 0; sized && i < shape.size(); ++i) {
      const std::uint64_t value = plain(shape[i]) ? shape[i].get<std::uint64_t>() : kLargest + 1;
      sized = value <= kLargest && (value == 0 || counted <= kLargest / value);
      counted *= value == 0 ? 1 : value;
      size *= value;
      tensor.shape.push_back(static_cast<std::int64_t>(value));
    }
    if (!sized) fail("shape" + who + "expected at most 8 sizes without overflow");
    const Json& offsets = entry["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2 || !plain(offsets[0]) || !plain(offsets[1]) ||
        offsets[0] > offsets[1]) {
      fail("offsets" + who + "expected two integers, begin <= end");
    }
    const auto begin = offsets[0].get<std::uint64_t>();
    const auto end = offsets[1].get<std::uint64_t>();
    if (end - begin != size) {
      fail("bytes" + who + "expected " + std::to_string(size) + " bytes, got " + std::to_string(end - begin));
    }
    if (begin % dtype->size != 0) {
      fail("alignment" + who + "expected a multiple of " + std::to_string(dtype->size) + ", got " +
           std::to_string(begin));
    }
    tensors_.emplace(name, std::move(tensor));
    return {begin, end};
  }

  static bool plain(const Json& value) { return value.is_number_unsigned() && value.get<std::uint64_t>() <= kLargest; }

  static bool named(const std::string& name) {
    return !name.empty() && name.size() <= kName &&
           name.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-") ==
               std::string::npos;
  }

  Bytes bytes_;
  std::string label_;
  std::map<std::string, TensorBytes> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace regplug
