// SPDX-License-Identifier: MIT
// Two-component mixtures with a given mean, variance and third central moment (docs/notation.md, eqs. 4-6).
#pragma once

#include "gms/config.h"
#include "gms/elementary.h"

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

template <typename T>
struct Range {  // how far the means may lie below and above the mean
  T below, above;
};

// The variance besides the fitted part V: the whole is min(scale V + base, most), and std = sqrt(min(base, most)) is
// what remains for V = 0.
template <typename T>
struct Known {
  T scale, base, most, std;
};

template <typename T>
struct Component {  // of a mixture, chosen by a uniform
  T mean, std;
};

// For weight w: the distance d of the means with w(1-w)(1-2w) d^3 = third, and the remaining variance V. V is negative
// where the third moment needs more than there is.
template <typename T>
struct Solution {
  T d, rest;
};
template <typename T>
GMS_HD Solution<T> solve(T excess, T third, const FitParameters<T>& p) {
  const T d = cube_root(third * p.inv_skew);
  return {d, fma(-p.spread * d, d, excess)};
}

// The two-point law of variance e = excess and skewness S/sqrt(e). For S >= 0 the nodes lie far above and near below
// the mean, with far near = e and far - near = S, hence far = (S + h)/2, h = sqrt(S^2 + 4e). For S < 0 it is mirrored.
// The far node has the light weight near/(far + near) = near/h. It is at most 1/2, and float32 keeps all its digits.
template <typename T, typename Math>
GMS_HD T two_point_slant(T excess, T third, Math&& math) {
  const T limit = T(0x1p60);  // past it the far weight is below every uniform draw, and S^2 must not overflow
  return clamp(math.quotient(third, excess), -limit, limit);
}
template <typename T>
GMS_HD T side_of(T slant) {
  return slant < T(0) ? T(-1) : T(1);
}
template <typename T>
struct TwoPoint {
  T light, far, near;
};
template <typename T, typename Math>
GMS_HD TwoPoint<T> two_point(T excess, T slant, T h, Math&& math) {
  const T far = T(0.5) * (std::fabs(slant) + h);
  return {math.quotient(excess, fma(far, far, excess)), far, math.quotient(excess, far)};
}

// The third moment, bounded so that its two-point law stays within the range: a node a above the mean has its partner
// e/a below. Plain comparisons leave it alone where the bounds are NaN: for e = 0, and for a range without end.
template <typename T, typename Math = Ieee>
GMS_HD T within(T third, T excess, const Range<T>& range, Math&& math = Math{}) {
  const T share = math.quotient(excess, math.not_tiny(range.below * range.above));
  const T low = excess * fma(share, range.above, -range.below);
  const T high = excess * fma(-share, range.below, range.above);
  third = third < low ? low : third;
  return third > high ? high : third;
}

// exact: the weight of `p`, and as much of the third moment as excess allows. free: where that is less than all of it,
// the two-point law, whose far node is component a.
template <Fit kFit, typename T, typename Math>
GMS_HD Mixture<T> fit_closed(T mean, T base, T excess, T third, const FitParameters<T>& p, Math&& math) {
  const Solution<T> s = solve(excess, third, p);
  const bool infeasible = s.rest < T(0);
  const T var = base + (infeasible ? T(0) : s.rest), a = T(1) - p.weight, b = -p.weight;
  if (kFit == Fit::kExact) {
    const T longest = std::copysign(math.root(excess * p.inv_spread), s.d), d = infeasible ? longest : s.d;
    return {p.weight, fma(a, d, mean), fma(b, d, mean), var};
  }
  const T slant = two_point_slant(math.ordinary(excess), third, math);
  const TwoPoint<T> law = two_point(excess, slant, math.root(fma(slant, slant, T(4) * excess)), math);
  const bool some = excess > T(0);
  const T weight = some ? law.light : p.weight, far = some ? law.far : T(0), near = some ? law.near : T(0);
  const T d = infeasible ? side_of(slant) : s.d;
  return {infeasible ? weight : p.weight, fma(infeasible ? far : a, d, mean), fma(infeasible ? -near : b, d, mean),
          var};
}

// The component of that mixture that u chooses, with one square root for fit and draw together. Where the fit is
// feasible, it is that of the variance; elsewhere the one that the means need. u < near/h is decided without the
// quotient.
template <Fit kFit, typename T, typename Math>
GMS_HD Component<T> choose_closed(T mean, T excess, T third, T u, const Known<T>& known, const FitParameters<T>& p,
                                  Math&& math) {
  const Solution<T> s = solve(excess, third, p);
  const bool infeasible = s.rest < T(0);
  const T var = at_most(fma(known.scale, s.rest, known.base), known.most);
  const T slant = kFit == Fit::kFree ? two_point_slant(math.ordinary(excess), third, math) : T(0);
  const T needed = kFit == Fit::kFree ? fma(slant, slant, T(4) * excess) : excess * p.inv_spread;
  const T one_root = math.root(infeasible ? needed : var), std = infeasible ? known.std : one_root;
  const T a = T(1) - p.weight, b = -p.weight;
  if (kFit == Fit::kExact) {
    const T d = infeasible ? std::copysign(one_root, s.d) : s.d;
    return {fma(u < p.weight ? a : b, d, mean), std};
  }
  const TwoPoint<T> law = two_point(excess, slant, one_root, math);
  const T node = excess > T(0) ? (u * one_root < law.near ? law.far : -law.near) : T(0);
  const T d = infeasible ? side_of(slant) : s.d;
  return {fma(infeasible ? node : u < p.weight ? a : b, d, mean), std};
}

template <typename T>
struct AdanUnknown {  // one unknown of the released fit with its optimiser state
  T value, m, d, s, last;
};

template <typename S>
struct AdanRates {  // of iteration k: lr/(1-0.9^k), 0.92 lr/(1-0.92^k), 1/sqrt(1-0.92^k), eps
  S first, difference, second, eps;
};

template <typename S>
struct AdanClock {  // 0.9^k and 0.92^k
  S first = 1, second = 1;

  GMS_HD AdanRates<S> next(const FitParameters<S>& p) {
    first *= S(0.9);
    second *= S(0.92);
    const S left = S(1) - second;
    return {p.lr / (S(1) - first), S(0.92) * p.lr / left, S(1) / root(left), p.eps};
  }
};

template <typename T>
GMS_HD void adan_update(AdanUnknown<T>& u, T gradient, bool first_step, const AdanRates<Scalar<T>>& rate) {
  using S = Scalar<T>;
  const T diff = first_step ? T{} : gradient - u.last;
  const T nesterov = fma(splat<T>(S(0.92)), diff, gradient);
  u.m = fma(splat<T>(S(0.9)), u.m, S(0.1) * gradient);
  u.d = fma(splat<T>(S(0.92)), u.d, S(0.08) * diff);
  u.s = fma(splat<T>(S(0.92)), u.s, S(0.08) * nesterov * nesterov);
  const T step = fma(u.m, splat<T>(rate.first), u.d * rate.difference);
  u.value -= step / fma(root(u.s), splat<T>(rate.second), splat<T>(rate.eps));
  u.last = gradient;
}

// adan: the released fit, Adan on the squared residuals of the three raw moments.
template <typename T>
struct Adan {
  using S = Scalar<T>;
  T mean, var, second, raw;
  AdanUnknown<T> a, b, beta;

  GMS_HD Adan(T mean, T var, T third)
      : mean(mean), var(var), second(fma(mean, mean, var)), raw(fma(mean, fma(mean, mean, S(3) * var), third)),
        a{mean, T{}, T{}, T{}, T{}}, b{mean - S(1e-3), T{}, T{}, T{}, T{}},
        beta{splat<T>(S(0.998)), T{}, T{}, T{}, T{}} {}

  GMS_HD T variance() const { return var * clamp(beta.value, splat<T>(S(0.1)), splat<T>(S(1.2))); }

  GMS_HD void iterate(S w, bool first_step, const AdanRates<S>& rates) {
    const S w2 = S(1) - w;
    const T low = splat<T>(S(0.1)), high = splat<T>(S(1.2));
    const T v = variance(), x = a.value, y = b.value, wx = w * x, wy = w2 * y;
    const T centre = wx + wy, xx = fma(x, x, v), yy = fma(y, y, v);
    const T e0 = S(2) * (centre - mean);                                   // 2 E0
    const T e1 = S(4) * (fma(splat<T>(w), xx, w2 * yy) - second);          // 4 E1
    const T e2 = S(6) * (fma(wx, xx, wy * yy) + S(2) * v * centre - raw);  // 6 E2
    const T slope = var * fma(e2, centre, S(0.5) * e1);
    adan_update(a, w * fma(e2, xx, fma(e1, x, e0)), first_step, rates);
    adan_update(b, w2 * fma(e2, yy, fma(e1, y, e0)), first_step, rates);
    adan_update(beta, (beta.value >= low) & (beta.value <= high) ? slope : T{}, first_step, rates);
  }

  GMS_HD Mixture<T> mixture(S w) const { return {splat<T>(w), a.value, b.value, variance()}; }
};

template <typename T>
GMS_HD Mixture<T> fit_adan(T mean, T var, T third, const FitParameters<T>& p) {
  Adan<T> fit(mean, var, third);
  AdanClock<T> clock;
  for (int32_t k = 0; k < p.iterations; ++k) fit.iterate(p.weight, k == 0, clock.next(p));
  return fit.mixture(p.weight);
}

template <Fit kFit, typename T, typename Math = Ieee>
GMS_HD Mixture<T> fit_mixture(T mean, T base, T excess, T third, const FitParameters<T>& p, Math&& math = Math{}) {
  if (kFit == Fit::kGaussian) return {p.weight, mean, mean, base + excess};
  if (kFit == Fit::kAdan) return fit_adan(mean, base + excess, third, p);
  return fit_closed<kFit>(mean, base, excess, third, p, math);
}

// The component that u chooses.
template <Fit kFit, typename T, typename Math>
GMS_HD Component<T> choose(T mean, T excess, T third, T u, const Known<T>& known, const FitParameters<T>& p,
                           Math&& math) {
  if (kFit == Fit::kGaussian) return {mean, math.root(at_most(fma(known.scale, excess, known.base), known.most))};
  if (kFit == Fit::kAdan) {
    const Mixture<T> fit = fit_adan(mean, fma(known.scale, excess, known.base), third, p);
    return {u < fit.weight ? fit.mean_a : fit.mean_b, math.root(at_most(fit.var, known.most))};
  }
  return choose_closed<kFit>(mean, excess, third, u, known, p, math);
}

template <typename T>
GMS_HD T draw(const Component<T>& component, T z) {
  return fma(component.std, z, component.mean);
}

}  // namespace gms
