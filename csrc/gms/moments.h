// SPDX-License-Identifier: MIT
// From noise moments to the mean, variance and third central moment of x_s (docs/notation.md, eqs. 1-3).
#pragma once

#include "gms/config.h"

namespace gms {

enum class Moments { kCumulant = 0, kReleased = 1 };

template <typename T>
struct StepCoefficients {
  T inv_alpha, ratio, A, B, c, var_max;  // 1/alpha_t, sigma_t/alpha_t
  T sigma, lo, hi;                       // data range, infinite where there is none
};

template <typename T>
struct StepMoments {  // var_s = base + excess: the known Gaussian, and what x_0 adds
  T mean, base, excess, third, m;
};

// NaN goes through: every comparison with it is false, and the first operand stays.
template <typename T>
GMS_HD T at_least(T x, T low) { return x < low ? low : x; }
template <typename T>
GMS_HD T at_most(T x, T high) { return x > high ? high : x; }
template <typename T>
GMS_HD T clamp(T x, T low, T high) { return at_most(at_least(x, low), high); }

// kBound: also bound v by (m - lo)(hi - m) (Bhatia-Davis).
template <bool kCentral, bool kBound, typename T>
GMS_HD StepMoments<T> step_moments(T x, T e1, T e2, T e3, const StepCoefficients<T>& k) {
  const T m = clamp(std::fma(-k.ratio, e1, x * k.inv_alpha), k.lo, k.hi);
  const T half = T(0.5) * (k.hi - k.lo);
  const T r2 = kCentral ? e2 : std::fma(-e1, e1, e2);
  // e3 - 3 e1 e2 + 2 e1^3 = e3 - e1 (3 e2 - 2 e1^2)
  const T r3 = kCentral ? e3 : std::fma(-e1, std::fma(T(-2) * e1, e1, T(3) * e2), e3);
  T v = clamp(k.ratio * k.ratio * r2, T(0), half * half);
  if (kBound) v = at_most(v, (m - k.lo) * (k.hi - m));
  const T b = k.B * k.ratio;
  return {std::fma(k.A, x, k.B * m), k.c, k.B * k.B * v, -(b * b * b) * r3, m};
}

// The moments as the released code clips them: each raw moment on its own, so that they need not be consistent.
template <bool kCentral, typename T>
GMS_HD StepMoments<T> released_moments(T x, T e1, T e2, T e3, const StepCoefficients<T>& k) {
  if (kCentral) {
    e3 = e3 + T(3) * e1 * e2 + e1 * e1 * e1;
    e2 = e2 + e1 * e1;
  }
  const T s = k.sigma, y = k.inv_alpha;
  const T m = clamp((x - s * e1) * y, T(-1), T(1));
  const T v = clamp(k.ratio * k.ratio * std::fma(-e1, e1, e2), T(0), T(1));
  const T q = clamp((x * x + s * s * e2 - T(2) * x * s * e1) * y * y, T(0), T(1));
  T u = (x * x * x - s * s * s * e3 - T(3) * x * x * s * e1 + T(3) * x * s * s * e2) * y * y * y;
  u = clamp(std::fabs(u) <= std::fabs(m) ? u : m, T(-1), T(1));
  const T mean = clamp(std::fma(k.A, x, k.B * m), T(-1000), T(1000));
  const T var = clamp(std::fma(k.B * k.B, v, k.c), T(0), T(1));
  const T a = k.A * x, b = k.B;
  const T raw = a * a * a + T(3) * a * a * b * m + T(3) * a * b * b * q + b * b * b * u + T(3) * k.c * (a + b * m);
  const T third = raw - T(3) * mean * var - mean * mean * mean;
  return {mean, at_most(var, k.c), at_least(var - k.c, T(0)), third, m};
}

}  // namespace gms
