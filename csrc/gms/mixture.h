// SPDX-License-Identifier: MIT
// Two-component mixtures with a given mean, variance and third central moment (docs/notation.md, eqs. 4-6).
#pragma once

#include "gms/config.h"
#include "gms/elementary.h"
#include "gms/moments.h"

namespace gms {

enum class Fit { kExact = 0, kFree = 1, kAdan = 2, kGaussian = 3 };

GMS_HD float cube_root(float x) { return cbrt_newton(x); }
GMS_HD double cube_root(double x) { return std::cbrt(x); }

template <typename T>
struct FitParameters {
  T weight, spread, inv_spread, inv_skew;  // w, w(1-w), 1/(w(1-w)), 1/(w(1-w)(1-2w))
  T lr, eps;
  int32_t iterations;
};

template <typename T>
struct Mixture {
  T weight, mean_a, mean_b, var;
};

// exact: means d apart with w(1-w)(1-2w) d^3 = third, |d| no larger than `excess` allows.
// free: where it would be larger, the two-point law of that skewness on a variance of `base`. The third moment is
// bounded so that the means stay within `below` and `above` of the mean: a node q s above it has its partner s/q
// below, and the skewness q - 1/q grows with q. (Comparisons with the NaN of excess = 0 leave it alone.)
template <Fit kFit, typename T>
GMS_HD Mixture<T> fit_closed(T mean, T base, T excess, T third, T below, T above, const FitParameters<T>& p) {
  if (kFit == Fit::kFree) {
    third = clamp(third, excess * (excess / below - below), excess * (above - excess / above));
  }
  const T d_max = std::sqrt(excess * p.inv_spread);
  const T wanted = cube_root(third * p.inv_skew);
  const bool infeasible = std::fabs(wanted) > d_max;
  const T d = clamp(wanted, -d_max, d_max);
  const T rest = at_least(std::fma(-p.spread * d, d, excess), T(0));
  Mixture<T> fit = {p.weight, std::fma(T(1) - p.weight, d, mean), std::fma(-p.weight, d, mean),
                    base + (infeasible ? T(0) : rest)};
  if (kFit == Fit::kFree) {
    const T s = std::sqrt(excess), inv_s = T(1) / s;
    const T limit = T(0x1p60);  // past it the far weight is below every uniform draw, and g^2 must not overflow
    const T g = clamp(third * inv_s * inv_s * inv_s, -limit, limit);
    const T h = std::sqrt(std::fma(g, g, T(4)));
    const T far = T(0.5) * (h + std::fabs(g)), near = T(1) / far;
    const T light = near / h;  // weight of the far node, without the cancellation of (1 - |g|/h)/2
    const bool up = g >= T(0), choose = infeasible && excess > T(0);
    fit.weight = choose ? (up ? light : T(1) - light) : fit.weight;
    fit.mean_a = choose ? std::fma(s, up ? far : near, mean) : fit.mean_a;
    fit.mean_b = choose ? std::fma(-s, up ? near : far, mean) : fit.mean_b;
    fit.var = choose ? base : fit.var;
  }
  return fit;
}

template <typename T>
struct AdanUnknown {  // one unknown of the released fit with its optimiser state
  T value, m, d, s, last;
};

template <typename T>
struct AdanRates {  // of iteration k: lr/(1-0.9^k), 0.92 lr/(1-0.92^k), 1/sqrt(1-0.92^k), eps
  T first, difference, second, eps;
};

template <typename T>
struct AdanClock {  // 0.9^k and 0.92^k
  T first = 1, second = 1;

  GMS_HD AdanRates<T> next(const FitParameters<T>& p) {
    first *= T(0.9);
    second *= T(0.92);
    const T left = T(1) - second;
    return {p.lr / (T(1) - first), T(0.92) * p.lr / left, T(1) / std::sqrt(left), p.eps};
  }
};

template <typename T>
GMS_HD void adan_update(AdanUnknown<T>& u, T gradient, bool first_step, const AdanRates<T>& rate) {
  const T diff = first_step ? T(0) : gradient - u.last;
  const T nesterov = gradient + T(0.92) * diff;
  u.m = T(0.9) * u.m + T(0.1) * gradient;
  u.d = T(0.92) * u.d + T(0.08) * diff;
  u.s = T(0.92) * u.s + T(0.08) * nesterov * nesterov;
  u.value -= (u.m * rate.first + u.d * rate.difference) / (std::sqrt(u.s) * rate.second + rate.eps);
  u.last = gradient;
}

// adan: the released fit, `iterations` of Adan on the squared residuals of the three raw moments.
template <typename T>
GMS_HD Mixture<T> fit_adan(T mean, T var, T third, const FitParameters<T>& p) {
  const T w = p.weight, w2 = T(1) - p.weight;
  const T second = mean * mean + var, raw = third + T(3) * mean * var + mean * mean * mean;
  AdanUnknown<T> a = {mean, 0, 0, 0, 0}, b = {mean - T(1e-3), 0, 0, 0, 0}, beta = {T(0.998), 0, 0, 0, 0};
  AdanClock<T> clock;
  for (int32_t k = 0; k < p.iterations; ++k) {
    const AdanRates<T> rates = clock.next(p);
    const T v = var * clamp(beta.value, T(0.1), T(1.2)), x = a.value, y = b.value;
    const T centre = w * x + w2 * y, xx = x * x + v, yy = y * y + v;
    const T e0 = centre - mean;
    const T e1 = w * xx + w2 * yy - second;
    const T e2 = w * x * (xx + T(2) * v) + w2 * y * (yy + T(2) * v) - raw;
    const bool inside = beta.value >= T(0.1) && beta.value <= T(1.2);
    const T gradient_beta = inside ? var * (T(2) * e1 + T(6) * e2 * centre) : T(0);
    adan_update(a, w * (T(2) * e0 + T(4) * e1 * x + T(6) * e2 * xx), k == 0, rates);
    adan_update(b, w2 * (T(2) * e0 + T(4) * e1 * y + T(6) * e2 * yy), k == 0, rates);
    adan_update(beta, gradient_beta, k == 0, rates);
  }
  return {w, a.value, b.value, var * clamp(beta.value, T(0.1), T(1.2))};
}

template <Fit kFit, typename T>
GMS_HD Mixture<T> fit_mixture(T mean, T base, T excess, T third, T below, T above, const FitParameters<T>& p) {
  if (kFit == Fit::kGaussian) return {p.weight, mean, mean, base + excess};
  if (kFit == Fit::kAdan) return fit_adan(mean, base + excess, third, p);
  return fit_closed<kFit>(mean, base, excess, third, below, above, p);
}

template <typename T>
GMS_HD T draw(const Mixture<T>& fit, T z, T u) {
  return std::fma(std::sqrt(fit.var), z, u < fit.weight ? fit.mean_a : fit.mean_b);
}

}  // namespace gms
