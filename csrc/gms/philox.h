// SPDX-License-Identifier: MIT
// Counter-based noise: Philox4x32-10 (Salmon et al. 2011), a pure function of (seed, sample, step, element).
#pragma once

#include "gms/config.h"
#include "gms/elementary.h"

namespace gms {

struct Counter {  // counter words c1..c3 and the key; c0 is the index of the group of four elements
  uint32_t c1, c2, c3, k0, k1;
};

enum Stream : uint32_t { kNormals = 0, kUniforms = 1, kInitial = 2 };

GMS_HD Counter make_counter(uint64_t seed, uint64_t sample, uint32_t step, uint32_t stream) {
  return {step, static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32) << 8 | stream,
          static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

// The product of two words as two words. Only the low halves of Wide words count, so the others need no mask.
template <typename W>
struct Product {
  W high, low;
};
GMS_HD Product<uint32_t> product(uint32_t a, uint32_t m) {
  const uint64_t p = static_cast<uint64_t>(a) * m;
  return {static_cast<uint32_t>(p >> 32), static_cast<uint32_t>(p)};
}
#ifndef __CUDACC__
GMS_HD Product<Wide> product(Wide a, uint32_t m) {
  const Wide p = multiply_low(a, m);
  return {p >> 32, p};
}
#endif

constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;  // added to the key after each round

// W: a word, or a register of words. K: the key's words, one for all or one for each, or a stand-in for them.
template <typename W, typename K>
GMS_HD void philox_rounds(W& c0, W& c1, W& c2, W& c3, K k0, K k1) {
  GMS_UNROLL
  for (int round = 0; round < 10; ++round) {
    const Product<W> p0 = product(c0, 0xD2511F53u), p1 = product(c2, 0xCD9E8D57u);
    c0 = p1.high ^ c1 ^ k0;
    c2 = p0.high ^ c3 ^ k1;
    c1 = p1.low;
    c3 = p0.low;
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
}

GMS_HD void philox_words(uint32_t quad, const Counter& key, uint32_t w[4]) {
  w[0] = quad, w[1] = key.c1, w[2] = key.c2, w[3] = key.c3;
  philox_rounds(w[0], w[1], w[2], w[3], key.k0, key.k1);
}

// The nearest float32, from halves that are exact where no instruction converts unsigned words.
GMS_HD float to_float(uint32_t w) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return fma(static_cast<float>(static_cast<int32_t>(w >> 16)), 65536.0f,
             static_cast<float>(static_cast<int32_t>(w & 0xffffu)));
#else
  return static_cast<float>(w);
#endif
}

// u = w 2^-32 + 2^-33 in float32, in (0, 1].
GMS_HD float uniform(uint32_t w) { return fma(to_float(w), 0x1p-32f, 0x1p-33f); }

// Two normals from two words (Box-Muller).
template <typename Math = Ieee>
GMS_HD void box_muller(uint32_t w0, uint32_t w1, float& z0, float& z1, Math&& math = Math{}) {
  float s, c;
  sincos_turn(uniform(w1), s, c);
  const float r = math.root_of_log(minus_two_log(uniform(w0)));
  z0 = r * c;
  z1 = r * s;
}

}  // namespace gms
