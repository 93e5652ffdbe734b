// SHA-256 (FIPS 180-4), in plain C++ and with the CPU's instructions, so that the one hash of bundles needs no
// dependency.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace regplug::detail {

class Sha256 {
 public:
  using Word = std::uint32_t;
  using State = std::array<Word, 8>;
  using Compress = void (*)(State&, const unsigned char*, std::size_t);

  explicit Sha256(Compress way = fastest()) : compress_(way) {}

  // The fastest implementation that this CPU supports.
  static Compress fastest() {
#if defined(__x86_64__)
    static const bool has_instructions = [] {
      unsigned a = 0;
      unsigned b = 0;
      unsigned c = 0;
      unsigned d = 0;
      // leaf 7: SHA; leaf 1: SSSE3 and SSE4.1, for the shuffles around it
      if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (b >> 29 & 1U) == 0) return false;
      return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 9 & 1U) != 0 && (c >> 19 & 1U) != 0;
    }();
    if (has_instructions) return instructions;
#endif
    return portable;
  }

  void update(std::string_view bytes) {
    length_ += bytes.size();
    if (filled_ != 0) {
      const std::size_t taken = bytes.size() < kBlock - filled_ ? bytes.size() : kBlock - filled_;
      std::memcpy(buffer_.data() + filled_, bytes.data(), taken);
      filled_ += taken;
      bytes.remove_prefix(taken);
      if (filled_ < kBlock) return;
      compress_(state_, buffer_.data(), 1);
      filled_ = 0;
    }
    const std::size_t blocks = bytes.size() / kBlock;
    compress_(state_, reinterpret_cast<const unsigned char*>(bytes.data()), blocks);
    bytes.remove_prefix(blocks * kBlock);
    if (!bytes.empty()) std::memcpy(buffer_.data(), bytes.data(), bytes.size());
    filled_ = bytes.size();
  }

  // The digest as 64 lower-case hexadecimal digits. Ends the computation: call it once.
  std::string hex() {
    const std::uint64_t bits = length_ * 8;
    const std::size_t zeros = (filled_ < 56 ? 56 : 120) - filled_;
    std::array<char, 72> tail{};
    tail[0] = static_cast<char>(0x80);
    for (std::size_t i = 0; i < 8; ++i) {
      tail[zeros + i] = static_cast<char>(static_cast<unsigned char>(bits >> (56 - 8 * i)));
    }
    update(std::string_view(tail.data(), zeros + 8));
    std::string text;
    for (const std::uint32_t word : state_) {
      for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[(word >> shift) & 15U];
    }
    return text;
  }

  static void portable(State& state, const unsigned char* data, std::size_t blocks) {
    for (; blocks != 0; --blocks, data += kBlock) compress(state, data);
  }

#if defined(__x86_64__)
  __attribute__((target("sha,sse4.1"))) static void instructions(State& state, const unsigned char* data,
                                                                 std::size_t blocks) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    // The instructions expect the state as (A, B, E, F) and (C, D, G, H), the first in the highest place.
    const __m128i cdab = _mm_shuffle_epi32(load(state.data()), 0xb1);
    const __m128i efgh = _mm_shuffle_epi32(load(state.data() + 4), 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
    __m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
    for (; blocks != 0; --blocks, data += kBlock) {
      const __m128i abef_before = abef;
      const __m128i cdgh_before = cdgh;
      __m128i w[4];  // the last sixteen words of the schedule, four in each
      for (std::size_t i = 0; i < 16; ++i) {
        __m128i& now = w[i % 4];
        if (i < 4) {
          now = _mm_shuffle_epi8(load(data + 16 * i), big_endian);
        } else {
          const __m128i seven_back = _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4);
          now = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(now, w[(i + 1) % 4]), seven_back),
                                     w[(i + 3) % 4]);
        }
        const __m128i keyed = _mm_add_epi32(now, load(kRounds.data() + 4 * i));
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, keyed);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(keyed, 0x0e));
      }
      abef = _mm_add_epi32(abef, abef_before);
      cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1b);
    const __m128i dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state.data()), _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state.data() + 4), _mm_alignr_epi8(dchg, feba, 8));
  }
#endif

 private:
  static constexpr std::size_t kBlock = 64;

#if defined(__x86_64__)
  static __m128i load(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
#endif

  static Word rotate(Word x, int n) { return (x >> n) | (x << (32 - n)); }

  // One round; the eight working variables are renamed instead of moved, so that rounds copy nothing.
  static void round(Word a, Word b, Word c, Word& d, Word e, Word f, Word g, Word& h, Word keyed) {
    h += (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + (g ^ (e & (f ^ g))) + keyed;
    d += h;
    h += (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) | (c & (a | b)));
  }

  static void compress(State& state, const unsigned char* block) {
    Word w[64];
    for (std::size_t i = 0; i < 16; ++i) {
      w[i] = Word{block[4 * i]} << 24 | Word{block[4 * i + 1]} << 16 | Word{block[4 * i + 2]} << 8 | block[4 * i + 3];
    }
    for (std::size_t i = 16; i < 64; ++i) {
      const Word s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
      const Word s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (std::size_t i = 0; i < 64; i += 8) {
      round(a, b, c, d, e, f, g, h, kRounds[i] + w[i]);
      round(h, a, b, c, d, e, f, g, kRounds[i + 1] + w[i + 1]);
      round(g, h, a, b, c, d, e, f, kRounds[i + 2] + w[i + 2]);
      round(f, g, h, a, b, c, d, e, kRounds[i + 3] + w[i + 3]);
      round(e, f, g, h, a, b, c, d, kRounds[i + 4] + w[i + 4]);
      round(d, e, f, g, h, a, b, c, kRounds[i + 5] + w[i + 5]);
      round(c, d, e, f, g, h, a, b, kRounds[i + 6] + w[i + 6]);
      round(b, c, d, e, f, g, h, a, kRounds[i + 7] + w[i + 7]);
    }
    const State added{a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) state[i] += added[i];
  }

  // Fractional parts of the cube roots of the first 64 primes.
  static constexpr std::array<Word, 64> kRounds{
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
      0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
      0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
      0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
      0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
      0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
      0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

  // Fractional parts of the square roots of the first 8 primes.
  State state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, kBlock> buffer_{};
  Compress compress_;
  std::size_t filled_ = 0;
  std::uint64_t length_ = 0;
};

inline std::string sha256_hex(std::string_view bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.hex();
}

}  // namespace regplug::detail
