// SPDX-License-Identifier: MIT
// log, sin/cos of a turn and cube root in float32, from polynomials and correctly rounded operations only. So this file
// defines the result, not a library. Errors against exact arithmetic, tested: 2 ulp at most.
#pragma once

#include "gms/config.h"

namespace gms {

// A union, not memcpy: g++ and nvcc define it and both vectorise through it.
union Word {
  float f;
  int32_t i;
};
GMS_HD int32_t bits_of(float x) {
  Word w;
  w.f = x;
  return w.i;
}
GMS_HD float from_bits(int32_t i) {
  Word w;
  w.i = i;
  return w.f;
}

// -2 log u for normal u in (0, 1]: u = 2^e (1 + r) with 1 + r in [1/sqrt 2, sqrt 2), then -2r + r^2 + r^3 P(r).
GMS_HD float minus_two_log(float u) {
  const int32_t i = bits_of(u) - 0x3f3504f3;  // offset by 1/sqrt 2
  const float e = static_cast<float>(i >> 23);
  const float r = from_bits((i & 0x007fffff) + 0x3f3504f3) - 1.0f;
  float p = -0.1394322216f;
  p = fma(p, r, 0.229594678f);
  p = fma(p, r, -0.233708396f);
  p = fma(p, r, 0.248513744f);
  p = fma(p, r, -0.284981162f);
  p = fma(p, r, 0.333356053f);
  p = fma(p, r, -0.400014311f);
  p = fma(p, r, 0.49999994f);
  p = fma(p, r, -0.666666627f);
  const float r2 = r * r;
  // 2 ln 2 in two parts: e times the first is exact.
  const float low = fma(e, 4.24388880e-4f, fma(p * r, r2, r2));
  return fma(e, -1.38671875f, fma(-2.0f, r, low));
}

// sin and cos of 2 pi u for u in [0, 1]: the nearest quarter turn is subtracted exactly.
GMS_HD void sincos_turn(float u, float& s, float& c) {
  const int32_t quarter = static_cast<int32_t>(fma(u, 4.0f, 0.5f));
  const float f = fma(static_cast<float>(quarter), -0.25f, u);  // in [-1/8, 1/8]
  const float y = f * f;
  float p = 41.4728317f;
  p = fma(p, y, -76.6978683f);
  p = fma(p, y, 81.6052017f);
  p = fma(p, y, -41.3417015f);
  p = fma(p, y, 6.28318548f);
  float q = -26.0581245f;
  q = fma(q, y, 60.2381821f);
  q = fma(q, y, -85.4567642f);
  q = fma(q, y, 64.9393921f);
  q = fma(q, y, -19.7392082f);
  const float sine = p * f, cosine = fma(q, y, 1.0f);
  const bool swap = quarter & 1;
  const float a = swap ? cosine : sine, b = swap ? sine : cosine;
  // Bit 1 of the quarter is the sign: moved to the sign bit.
  s = from_bits(bits_of(a) ^ static_cast<int32_t>(static_cast<uint32_t>(quarter & 2) << 30));
  c = from_bits(bits_of(b) ^ static_cast<int32_t>(static_cast<uint32_t>((quarter + 1) & 2) << 30));
}

// Cube root without a division, for normal x, zero and infinity (denormals give a number below 2^-42): y ~ x^(-1/3)
// from a guess in the exponent bits and a third-order step; then with r = 1 - x y^3 it is x y^2 (1 - r)^(-2/3).
GMS_HD float cbrt_newton(float x) {
  const float a = std::fabs(x);
  const uint32_t third =
      static_cast<uint32_t>(static_cast<uint64_t>(static_cast<uint32_t>(bits_of(a))) * 0x55555556u >> 32);
  float y = from_bits(0x54a2fa8c - static_cast<int32_t>(third));
  const float r = fma(-(a * y), y * y, 1.0f);
  y = fma(y * r, fma(r, 0.222222222f, 0.333333333f), y);
  const float p = a * y, rest = fma(-p, y * y, 1.0f);
  const float correction = rest * fma(rest, 0.555555556f, 0.666666667f);
  return std::copysign(fma(p, y, p * y * correction), x);
}

}  // namespace gms
