// Reads a bundle and checks every byte. Includes no torch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "regplug/detail/bytes.h"
#include "regplug/detail/cpu.h"
#include "regplug/detail/folder.h"
#include "regplug/detail/mask_rules.h"
#include "regplug/detail/read_manifest.h"
#include "regplug/detail/sha256.h"
#include "regplug/detail/strict_json.h"
#include "regplug/detail/tolerances.h"
#include "regplug/detail/translate_errors.h"
#include "regplug/error.h"
#include "regplug/manifest.h"
#include "regplug/safetensors.h"

namespace regplug {

struct Options {
  bool follow_links = false;  // for hub caches and mounted volumes
  std::string pin;            // the digest this bundle must have; empty: any
};

// Throws Error when `pin` is not empty and not a digest, so that a typo is not reported as a different bundle.
inline void check_pin(const std::string& pin) {
  const bool is_digest = pin.size() == 64 && pin.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
  if (pin.empty() || is_digest) return;
  throw Error("digest: expected 64 hexadecimal digits, got " + detail::quote(pin) + ".");
}

// Data only: runs no program. Copies share their bytes.
class Bundle {
 public:
  // Reads and checks the whole folder. With a `backend`, also keeps the bytes of that program.
  // Throws Error when anything does not match docs/bundle.md.
  static Bundle open(const std::string& dir, const Options& options = {}, const std::string& backend = "") {
    check_pin(options.pin);
    return detail::translate_errors("bundle " + dir, [&] {
      return detail::read_folder(dir, options.follow_links,
                                 [&](const detail::Folder& folder) { return Bundle(folder, options.pin, backend); });
    });
  }

  const Manifest& manifest() const { return manifest_; }
  const std::string& digest() const { return digest_; }  // sha256 of manifest.json, which pins all other files
  const SafeTensors& weights() const { return weights_; }
  const SafeTensors& golden() const { return golden_; }
  // The best program for this CPU of the backend given to open(), and its bytes.
  const ProgramRecord& program() const { return program_; }
  const detail::Bytes& program_bytes() const { return program_bytes_; }

 private:
  static constexpr std::uint64_t kMaxManifest = std::uint64_t{1} << 20;
  static constexpr const char* kWeights = "weights.safetensors";
  static constexpr const char* kGolden = "golden.safetensors";

  Bundle(const detail::Folder& folder, const std::string& pin, const std::string& backend) {
    read_manifest(folder, pin);
    const std::string label = folder.label() + ": ";
    for (const std::string& name : folder.names()) {
      if (name == "manifest.json" || manifest_.files.count(name) != 0) continue;
      for (const char* reserved : {"manifest", "weights", "golden", "program"}) {  // other files are never opened
        if (name.rfind(reserved, 0) != 0) continue;
        throw Error(label + detail::escape_file_name(name) + ": not listed in the manifest; remove it.");
      }
    }
    const ProgramRecord* chosen = nullptr;
    std::string no_program;
    if (!backend.empty()) {
      try {
        chosen = &detail::best_for_this_cpu(label + "program '" + backend + "'", manifest_, backend);
      } catch (const Error& error) {
        no_program = error.what();  // reported only if the rest of the folder is valid
      }
    }
    const std::set<std::string> needed{kWeights, kGolden, chosen == nullptr ? "" : chosen->file};
    std::map<std::string, detail::Bytes> kept;
    for (const auto& [name, entry] : manifest_.files) {
      const detail::Bytes bytes = read_file(folder, name, entry, needed.count(name) != 0);
      if (needed.count(name) != 0) kept[name] = bytes;
    }
    if (!no_program.empty()) throw Error(no_program);
    if (chosen != nullptr) {
      program_ = *chosen;
      program_bytes_ = kept[chosen->file];
    }
    weights_ = SafeTensors(kept[kWeights], label + kWeights);
    golden_ = SafeTensors(kept[kGolden], label + kGolden);
    check_golden(label + kGolden);
    detail::check_tolerances(label, manifest_, golden_);
  }

  void read_manifest(const detail::Folder& folder, const std::string& pin) {
    const detail::File file = folder.open("manifest.json", "; use a folder that `regplug export` wrote.");
    if (file.size() > kMaxManifest) {
      throw Error(file.label() + ": expected at most 1048576 bytes, got " + std::to_string(file.size()) + ".");
    }
    const detail::Bytes text = file.read_all();
    digest_ = detail::sha256_hex(text.view());
    std::string wanted = pin;
    for (char& digit : wanted) digit = digit >= 'A' && digit <= 'F' ? static_cast<char>(digit - 'A' + 'a') : digit;
    if (!wanted.empty() && wanted != digest_) {
      throw Error(file.label() + ": sha256 is " + digest_ + ", pinned is " + wanted + ".");
    }
    manifest_ = detail::read_manifest(text.view(), file.label());
  }

  // Reads a listed file to its end and compares its digest; keeps the bytes only if asked.
  static detail::Bytes read_file(const detail::Folder& folder, const std::string& name, const FileRecord& entry,
                                 bool keep) {
    const std::string again = "; export the bundle again.";
    const detail::File file = folder.open(name, again);
    const auto check_size = [&](std::uint64_t size) {
      if (size == entry.size) return;
      throw Error(file.label() + ": expected " + std::to_string(entry.size) + " bytes, got " + std::to_string(size) +
                  again);
    };
    check_size(file.size());
    detail::Bytes bytes;
    detail::Sha256 hash;
    if (keep) {
      bytes = file.read_all();
      check_size(bytes.size());
      hash.update(bytes.view());
    } else {
      std::vector<char> chunk(std::size_t{1} << 20);
      std::uint64_t total = 0;
      while (total < entry.size) {
        const std::size_t left = static_cast<std::size_t>(std::min<std::uint64_t>(chunk.size(), entry.size - total));
        const std::size_t got = file.read(chunk.data(), left);
        if (got == 0) break;
        hash.update({chunk.data(), got});
        total += got;
      }
      check_size(total);
    }
    if (hash.hex() != entry.sha256) throw Error(file.label() + ": sha256 differs from the manifest" + again);
    return bytes;
  }

  // Every case has its inputs and outputs with the sizes of the manifest, and there are no other tensors.
  void check_golden(const std::string& label) const {
    std::map<std::string, TensorBytes> wanted;
    for (const GoldenCase& golden : manifest_.cases) {
      std::vector<std::int64_t> shape = manifest_.input.shape;
      shape[0] = golden.batch;
      shape[1] = golden.start ? kFree : golden.length;
      wanted[golden.name + ".input"] = {manifest_.input.dtype, shape, {}};
      for (const TensorSpec& input : manifest_.more_inputs) {
        const bool is_mask = input.dtype == "bool";
        wanted[golden.name + ".input." + input.name] = {
            input.dtype, {golden.batch, is_mask ? shape[1] : input.shape[1]}, {}};
      }
      for (const TensorSpec& output : manifest_.outputs) {
        const std::string& dtype = manifest_.truth == "float64" ? manifest_.truth : output.dtype;
        wanted[golden.name + ".output." + output.name] = {dtype, {golden.batch, output.shape[1]}, {}};
      }
    }
    if (detail::keys_of(wanted) != detail::keys_of(golden_.tensors())) {
      throw Error(label + ": expected tensors " + detail::format_list(detail::keys_of(wanted)) + ", got " +
                  detail::format_list(detail::keys_of(golden_.tensors())) + ".");
    }
    for (auto& [name, expected] : wanted) {
      const TensorBytes& got = golden_.at(name);
      if (expected.shape[1] == kFree && expected.dtype == "bool") {  // a mask is as long as the case's input
        expected.shape[1] = golden_.at(name.substr(0, name.rfind('.'))).shape[1];
      }
      if (got.shape.size() == expected.shape.size() && expected.shape[1] == kFree) expected.shape[1] = got.shape[1];
      if (got.dtype != expected.dtype || got.shape != expected.shape) {
        throw Error(label + ": tensor '" + name + "': expected " + expected.signature() + ", got " + got.signature() +
                    ".");
      }
    }
    for (const GoldenCase& golden : manifest_.cases) {
      const std::int64_t stored = golden_.at(golden.name + ".input").shape[1];
      if (golden.start && (golden.length > stored || *golden.start > stored - golden.length)) {
        throw Error(label + ": case '" + golden.name + "': expected a slice of " + std::to_string(golden.length) +
                    " inside the input.");
      }
      if (manifest_.has_mask()) check_mask(label, golden);
    }
  }

  // As in a call of a program.
  void check_mask(const std::string& label, const GoldenCase& golden) const {
    const TensorBytes& mask = golden_.at(golden.name + ".input.mask");
    const std::int64_t sizes[] = {golden.batch, golden.length};
    const std::int64_t strides[] = {mask.shape[1], 1};
    const char* const begin = mask.bytes.data() + golden.start.value_or(0);
    const std::string fault = detail::mask_fault(manifest_, {begin, sizes, strides});
    if (!fault.empty()) throw Error(label + ": case '" + golden.name + "': mask: " + fault);
  }

  Manifest manifest_;
  std::string digest_;
  SafeTensors weights_;
  SafeTensors golden_;
  ProgramRecord program_;
  detail::Bytes program_bytes_;
};

}  // namespace regplug
