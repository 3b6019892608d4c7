// SPDX-License-Identifier: MIT
// From noise moments to the mean, variance and third central moment of x_s (docs/notation.md, eqs. 1-3).
#pragma once

#include "gms/config.h"

namespace gms {

enum class Moments { kCumulant = 0, kReleased = 1 };

template <typename T>
struct StepCoefficients {
  T inv_alpha, ratio, A, B, c, var_max;  // 1/alpha_t, sigma_t/alpha_t
  T lo, hi;                              // data range, infinite where there is none
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

template <typename T>
struct DataCumulants {  // mean, variance and third central moment of x_0 given x_t, as the network has them
  T m, v, k;
};

template <bool kCentral, typename T>
GMS_HD DataCumulants<T> data_cumulants(T x, T e1, T e2, T e3, const StepCoefficients<T>& k) {
  const T r2 = kCentral ? e2 : std::fma(-e1, e1, e2);
  // e3 - 3 e1 e2 + 2 e1^3 = e3 - e1 (3 e2 - 2 e1^2)
  const T r3 = kCentral ? e3 : std::fma(-e1, std::fma(T(-2) * e1, e1, T(3) * e2), e3);
  const T r = k.ratio;
  return {std::fma(-r, e1, x * k.inv_alpha), r * r * r2, -(r * r * r) * r3};
}

// kBound: also bound v by (m - lo)(hi - m) (Bhatia-Davis).
template <bool kCentral, bool kBound, typename T>
GMS_HD StepMoments<T> step_moments(T x, T e1, T e2, T e3, const StepCoefficients<T>& k) {
  const DataCumulants<T> d = data_cumulants<kCentral>(x, e1, e2, e3, k);
  const T m = clamp(d.m, k.lo, k.hi), half = T(0.5) * (k.hi - k.lo), b = k.B;
  T v = clamp(d.v, T(0), half * half);
  if (kBound) v = at_most(v, (m - k.lo) * (k.hi - m));
  return {std::fma(k.A, x, b * m), k.c, b * b * v, b * b * b * d.k, m};
}

// The moments as the released code clips them: E[x_0^2] and E[x_0^3] apart from m and v, so not consistent with them.
// Its third raw moment of x_s, less 3 mean_s var_s + mean_s^3, is `third` without the cancellation.
template <bool kCentral, typename T>
GMS_HD StepMoments<T> released_moments(T x, T e1, T e2, T e3, const StepCoefficients<T>& k) {
  const DataCumulants<T> d = data_cumulants<kCentral>(x, e1, e2, e3, k);
  const T q = clamp(std::fma(d.m, d.m, d.v), T(0), T(1));
  const T raw = std::fma(d.m, std::fma(d.m, d.m, T(3) * d.v), d.k);
  const T m = clamp(d.m, T(-1), T(1)), v = clamp(d.v, T(0), T(1)), b = k.B;
  const T u = clamp(std::fabs(raw) <= std::fabs(m) ? raw : m, T(-1), T(1));
  const T mean = clamp(std::fma(k.A, x, b * m), T(-1000), T(1000));
  const T full = std::fma(b * b, v, k.c), var = clamp(full, T(0), T(1));
  const T third = T(3) * k.A * x * b * b * (std::fma(-m, m, q) - v) +
                  b * b * b * std::fma(-m, std::fma(m, m, T(3) * v), u) + T(3) * mean * (full - var);
  return {mean, at_most(var, k.c), at_least(var - k.c, T(0)), third, m};
}

}  // namespace gms
