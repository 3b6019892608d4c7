// SPDX-License-Identifier: MIT
// log, sin/cos of a turn and cube root in float32, from polynomials and correctly rounded operations only, so that
// the result is defined by this text and not by a library. The tests state their errors against float64.
#pragma once

#include "gms/config.h"

namespace gms {

// A union, not memcpy: g++ and nvcc define it and both vectorise through it.
union Word {
  float f;
  int32_t i;
};
GMS_HD int32_t bits_of(float x) { Word w; w.f = x; return w.i; }
GMS_HD float from_bits(int32_t i) { Word w; w.i = i; return w.f; }

// log u for normal u in (0, 1]: u = 2^e (1 + r) with 1 + r in [1/sqrt 2, sqrt 2), then r - r^2/2 + r^3 P(r).
GMS_HD float log_unit(float u) {
  const int32_t i = bits_of(u) - 0x3f3504f3;  // offset by 1/sqrt 2
  const float e = static_cast<float>(i >> 23);
  const float r = from_bits((i & 0x007fffff) + 0x3f3504f3) - 1.0f;
  float p = 0.0697161108f;
  p = std::fma(p, r, -0.114797339f);
  p = std::fma(p, r, 0.116854198f);
  p = std::fma(p, r, -0.124256872f);
  p = std::fma(p, r, 0.142490581f);
  p = std::fma(p, r, -0.166678026f);
  p = std::fma(p, r, 0.200007156f);
  p = std::fma(p, r, -0.24999997f);
  p = std::fma(p, r, 0.333333313f);
  const float r2 = r * r;
  // ln 2 in two parts: e times the first is exact.
  const float low = std::fma(e, -2.12194440e-4f, std::fma(p * r, r2, -0.5f * r2));
  return std::fma(e, 0.693359375f, r + low);
}

// sin and cos of 2 pi u for u in [0, 1]: the nearest quarter turn is taken off exactly.
GMS_HD void sincos_turn(float u, float& s, float& c) {
  const int32_t quarter = static_cast<int32_t>(std::fma(u, 4.0f, 0.5f));
  const float f = std::fma(static_cast<float>(quarter), -0.25f, u);  // in [-1/8, 1/8]
  const float y = f * f;
  float p = 41.4728317f;
  p = std::fma(p, y, -76.6978683f);
  p = std::fma(p, y, 81.6052017f);
  p = std::fma(p, y, -41.3417015f);
  p = std::fma(p, y, 6.28318548f);
  float q = -26.0581245f;
  q = std::fma(q, y, 60.2381821f);
  q = std::fma(q, y, -85.4567642f);
  q = std::fma(q, y, 64.9393921f);
  q = std::fma(q, y, -19.7392082f);
  const float sine = p * f, cosine = std::fma(q, y, 1.0f);
  const bool swap = quarter & 1;
  const float a = swap ? cosine : sine, b = swap ? sine : cosine;
  s = quarter & 2 ? -a : a;
  c = (quarter + 1) & 2 ? -b : b;
}

// Cube root without a division: x^(-1/3) from a guess in the exponent bits and two third-order steps, times x^(2/3).
GMS_HD float cbrt_newton(float x) {
  const float sign_and_size = x;
  float a = std::fabs(x);
  const bool tiny = a < 0x1p-90f;  // denormals, and where a y^3 would lose digits
  a = tiny ? a * 0x1p72f : a;
  float y = from_bits(0x54a2fa8c - bits_of(a) / 3);
  GMS_UNROLL
  for (int step = 0; step < 2; ++step) {
    const float r = std::fma(-a * y, y * y, 1.0f);
    y = std::fma(y * r, std::fma(r, 0.222222222f, 0.333333333f), y);
  }
  float t = a * y * y;
  const float residual = std::fma(-t * t, t, a);
  t = std::fma(residual * 0.333333333f, y * y, t);
  t = tiny ? t * 0x1p-24f : t;
  t = a > 0.0f && a <= 0x1.fffffep127f ? t : a;  // zero, infinity and NaN are their own cube roots
  return std::copysign(t, sign_and_size);
}

}  // namespace gms
