// Gives a shared library the functions that it calls, before the dynamic linker sees its bytes.
//
// Every undefined symbol without a version becomes an absolute one: a local, hidden symbol whose value is the address
// of the function. The dynamic linker takes such a value as it is and searches no other library for the name. So nothing
// has to be exported, and a libtorch in the same process neither sees these functions nor replaces them. This needs
// glibc 2.28 or newer, which adds no load address to an absolute symbol.
#pragma once

#include <elf.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "regplug/error.h"

namespace regplug::detail {

#if defined(__x86_64__)
inline constexpr Elf64_Half kMachine = EM_X86_64;
#elif defined(__aarch64__)
inline constexpr Elf64_Half kMachine = EM_AARCH64;
#elif defined(REGPLUG_RUNTIME)
#error "regplug::runtime knows x86-64 and aarch64"
#else
inline constexpr Elf64_Half kMachine = EM_NONE;  // the dynamic linker will say
#endif

inline std::string machine_name(Elf64_Half machine) {
  return machine == EM_X86_64 ? "x86-64" : machine == EM_AARCH64 ? "aarch64" : "machine " + std::to_string(machine);
}

// Throws Fault when the bytes do not begin as a shared library for this machine.
inline void check_library(std::string_view bytes) {
  Elf64_Ehdr header;
  if (bytes.size() < sizeof header) throw Fault("expected a shared library, got another file");
  std::memcpy(&header, bytes.data(), sizeof header);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_type != ET_DYN) {
    throw Fault("expected a shared library, got another file");
  }
  if (kMachine == EM_NONE || header.e_machine == kMachine) return;
  throw Fault("expected a library for " + machine_name(kMachine) + ", got one for " + machine_name(header.e_machine));
}

// An ELF file of this machine, in memory. Every read and write is checked against its end.
class ElfImage {
 public:
  explicit ElfImage(std::string_view bytes) : bytes_(bytes) {
    check_library(bytes_);
    const auto header = read<Elf64_Ehdr>(0);
    for (std::size_t i = 0; i < header.e_phnum; ++i) {
      const auto segment = read<Elf64_Phdr>(header.e_phoff + i * sizeof(Elf64_Phdr));
      if (segment.p_type == PT_LOAD) loaded_.push_back(segment);
      if (segment.p_type == PT_DYNAMIC) dynamic_ = segment;
    }
    if (dynamic_.p_type != PT_DYNAMIC) throw damaged();
  }

  template <typename Record>
  Record read(std::size_t offset) const {
    Record record;
    check(offset, sizeof record);
    std::memcpy(&record, bytes_.data() + offset, sizeof record);
    return record;
  }

  template <typename Record>
  void write(std::size_t offset, const Record& record) {
    check(offset, sizeof record);
    std::memcpy(bytes_.data() + offset, &record, sizeof record);
  }

  std::string_view text(std::size_t offset) const {
    check(offset, 1);
    const std::size_t end = bytes_.find('\0', offset);
    if (end == std::string::npos) throw damaged();
    return std::string_view(bytes_).substr(offset, end - offset);
  }

  // The place in the file of an address in the loaded library.
  std::size_t offset_of(std::uint64_t address) const {
    for (const Elf64_Phdr& segment : loaded_) {
      if (address >= segment.p_vaddr && address - segment.p_vaddr < segment.p_filesz) {
        return static_cast<std::size_t>(segment.p_offset + (address - segment.p_vaddr));
      }
    }
    throw damaged();
  }

  const Elf64_Phdr& dynamic() const { return dynamic_; }
  std::string release() { return std::move(bytes_); }

  static Fault damaged() { return Fault("expected a whole shared library, got a damaged one"); }

 private:
  void check(std::size_t offset, std::size_t size) const {
    if (offset > bytes_.size() || size > bytes_.size() - offset) throw damaged();
  }

  std::string bytes_;
  std::vector<Elf64_Phdr> loaded_;
  Elf64_Phdr dynamic_{};
};

// The bytes with every function bound that `find(name)` gives an address for, and without the names of torch's
// libraries. Throws Fault that names the first function that `find` does not know.
template <typename Find>
std::string bind_symbols(std::string_view bytes, Find find) {
  ElfImage image(bytes);
  std::uint64_t symbols = 0;
  std::uint64_t names = 0;
  std::uint64_t old_hash = 0;
  std::uint64_t gnu_hash = 0;
  std::uint64_t versions = 0;
  std::vector<Elf64_Dyn> entries;
  const std::size_t size = static_cast<std::size_t>(image.dynamic().p_filesz) / sizeof(Elf64_Dyn);
  const auto place = [&](std::size_t i) {
    return static_cast<std::size_t>(image.dynamic().p_offset) + i * sizeof(Elf64_Dyn);
  };
  for (std::size_t i = 0; i < size; ++i) {
    const auto entry = image.read<Elf64_Dyn>(place(i));
    if (entry.d_tag == DT_NULL) break;
    if (entry.d_tag == DT_SYMTAB) symbols = entry.d_un.d_ptr;
    if (entry.d_tag == DT_STRTAB) names = entry.d_un.d_ptr;
    if (entry.d_tag == DT_HASH) old_hash = entry.d_un.d_ptr;
    if (entry.d_tag == DT_GNU_HASH) gnu_hash = entry.d_un.d_ptr;
    if (entry.d_tag == DT_VERSYM) versions = entry.d_un.d_ptr;
    entries.push_back(entry);
  }
  if (symbols == 0 || names == 0 || (old_hash == 0 && gnu_hash == 0)) throw ElfImage::damaged();

  // The second number of the older hash table is how many symbols there are. In a GNU one it is the first symbol of the
  // table, and all undefined symbols are before it.
  const std::uint64_t hash = gnu_hash != 0 ? gnu_hash : old_hash;
  const auto count = image.read<std::uint32_t>(image.offset_of(hash) + sizeof(std::uint32_t));
  std::vector<std::string> missing;
  for (std::uint32_t i = 1; i < count; ++i) {
    const std::size_t offset = image.offset_of(symbols + i * sizeof(Elf64_Sym));
    auto symbol = image.read<Elf64_Sym>(offset);
    if (symbol.st_shndx != SHN_UNDEF) continue;
    // the C and C++ libraries give theirs versions; a weak one may stay undefined
    const auto version =
        versions == 0 ? 0 : image.read<Elf64_Half>(image.offset_of(versions + i * sizeof(Elf64_Half))) & 0x7fffU;
    if (version > VER_NDX_GLOBAL) continue;
    const std::string name(image.text(image.offset_of(names + symbol.st_name)));
    const void* const address = find(name);
    if (address == nullptr) {
      if (ELF64_ST_BIND(symbol.st_info) != STB_WEAK) missing.push_back(name);
      continue;
    }
    symbol.st_value = reinterpret_cast<std::uintptr_t>(address);
    symbol.st_shndx = SHN_ABS;
    symbol.st_info = ELF64_ST_INFO(STB_LOCAL, STT_FUNC);
    symbol.st_other = STV_HIDDEN;
    image.write(offset, symbol);
  }
  if (!missing.empty()) {
    const std::string more = missing.size() == 1 ? "" : " and " + std::to_string(missing.size() - 1) + " more";
    throw Fault("expected functions that regplug::runtime has, got " + missing.front() + more +
                "; a program with it needs libtorch");
  }

  std::size_t kept = 0;
  for (const Elf64_Dyn& entry : entries) {
    if (entry.d_tag == DT_NEEDED) {
      const std::string_view library = image.text(image.offset_of(names + entry.d_un.d_val));
      if (library.rfind("libtorch", 0) == 0 || library.rfind("libc10", 0) == 0) continue;
    }
    image.write(place(kept++), entry);
  }
  for (; kept < entries.size(); ++kept) image.write(place(kept), Elf64_Dyn{});
  return image.release();
}

}  // namespace regplug::detail
