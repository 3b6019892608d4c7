// SPDX-License-Identifier: MIT
// From noise moments to the cumulants of x_0 given x_t, and of x_s (docs/notation.md, eqs. 1-3).
#pragma once

#include "gms/config.h"

namespace gms {

enum class Moments { kCumulant = 0, kReleased = 1 };

template <typename T>
struct StepCoefficients {
  T inv_alpha, r, r2, r3;  // 1/alpha_t, r = sigma_t/alpha_t, r^2, -r^3
  T A, B, B2, c;           // B2 = B^2
  T var_max, std;          // std = sqrt(min(c, var_max))
  T lo, hi;                // data range, infinite where there is none
};

template <typename T>
struct Cumulants {  // mean, variance and third central moment
  T mean, var, third;
};

template <typename T>
struct StepMoments {  // of x_s; its variance in two parts, base + excess: the known Gaussian, and what x_0 adds
  T mean, base, excess, third;
};

// Classifier-free guidance: unconditional + scale (conditional - unconditional).
template <typename T>
GMS_HD T led(T conditional, T unconditional, Scalar<T> scale) {
  return fma(splat<T>(scale), conditional - unconditional, unconditional);
}

// E[x_0|x_t] from the state and a network's output; it is linear in both for every form of prediction.
template <typename T>
GMS_HD T data_estimate(T x, T y, T of_x, T of_output, T lo, T hi) {
  return clamp(fma(of_output, y, of_x * x), lo, hi);
}

// Cumulants of x_0 given x_t from the network's moments, unclipped. `to` is the first moment that guidance asks for,
// else e1; the moments about it stay.
template <bool kCentral, typename T>
GMS_HD Cumulants<T> data_cumulants(T x, T e1, T e2, T e3, T to, const StepCoefficients<T>& k) {
  const T r2 = kCentral ? e2 : fma(-e1, e1, e2);
  const T r3 = kCentral ? e3 : fma(-e1, fma(e1, e1, T(3) * r2), e3);  // e3 - 3 e1 e2 + 2 e1^3, where e2 = r2 + e1^2
  return {fma(-k.r, to, x * k.inv_alpha), k.r2 * r2, k.r3 * r3};
}

// The same, bounded by the data range: the variance is at most that of any law on [lo, hi], or with kBound of any with
// this mean (Bhatia-Davis).
template <bool kCentral, bool kBound, typename T>
GMS_HD Cumulants<T> posterior(T x, T e1, T e2, T e3, T to, const StepCoefficients<T>& k) {
  const Cumulants<T> d = data_cumulants<kCentral>(x, e1, e2, e3, to, k);
  const T m = clamp(d.mean, k.lo, k.hi), half = T(0.5) * (k.hi - k.lo);
  const T v = clamp(d.var, T(0), half * half);
  return {m, kBound ? at_most(v, (m - k.lo) * (k.hi - m)) : v, d.third};
}

template <bool kCentral, typename T>
GMS_HD StepMoments<T> step_moments(T x, T e1, T e2, T e3, T to, const StepCoefficients<T>& k) {
  const Cumulants<T> d = posterior<kCentral, false>(x, e1, e2, e3, to, k);
  return {fma(k.B, d.mean, k.A * x), k.c, k.B2 * d.var, k.B * k.B2 * d.third};
}

// The moments as the released code clips them: E[x_0^2] and E[x_0^3] separately from m and v, so not consistent with
// them. `third` is its third raw moment of x_s, less 3 mean_s var_s + mean_s^3, without the cancellation.
template <bool kCentral, typename T>
GMS_HD StepMoments<T> released_moments(T x, T e1, T e2, T e3, T to, const StepCoefficients<T>& k) {
  const Cumulants<T> d = data_cumulants<kCentral>(x, e1, e2, e3, to, k);
  const T q = clamp(fma(d.mean, d.mean, d.var), T(0), T(1));
  const T raw = fma(d.mean, fma(d.mean, d.mean, T(3) * d.var), d.third);
  const T m = clamp(d.mean, T(-1), T(1)), v = clamp(d.var, T(0), T(1));
  const T u = clamp(std::fabs(raw) <= std::fabs(m) ? raw : m, T(-1), T(1));
  const T mean = clamp(fma(k.B, m, k.A * x), T(-1000), T(1000));
  const T full = fma(k.B2, v, k.c), var = clamp(full, T(0), T(1));
  const T third = T(3) * k.A * x * k.B2 * (fma(-m, m, q) - v) + k.B * k.B2 * fma(-m, fma(m, m, T(3) * v), u) +
                  T(3) * mean * (full - var);
  return {mean, at_most(var, k.c), at_least(var - k.c, T(0)), third};
}

template <Moments kMoments, bool kCentral, typename T>
GMS_HD StepMoments<T> moments_of_step(T x, T e1, T e2, T e3, T to, const StepCoefficients<T>& k) {
  return kMoments == Moments::kReleased ? released_moments<kCentral>(x, e1, e2, e3, to, k)
                                        : step_moments<kCentral>(x, e1, e2, e3, to, k);
}

}  // namespace gms
