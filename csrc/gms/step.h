// SPDX-License-Identifier: MIT
// The ops for one element, called by every loop on every device.
#pragma once

#include "gms/mixture.h"
#include "gms/moments.h"

namespace gms {

// Noise moments to x_s. q(x_s|x_t) is the law of x_0 given x_t, scaled by B, shifted by A x_t and widened by the known
// Gaussian (eq. 1). So the closed fits are made for x_0. The released moments and optimiser are those of x_s itself.
template <Fit kFit, Moments kMoments, bool kCentral, typename T, typename Math = Ieee>
GMS_HD T gms_step(T x, T e1, T e2, T e3, T to, T z, T u, const StepCoefficients<T>& k, const FitParameters<T>& p,
                  Math&& math = Math{}) {
  constexpr bool kFree = kFit == Fit::kFree;
  if (kMoments == Moments::kReleased || kFit == Fit::kAdan) {
    const StepMoments<T> s = moments_of_step<kMoments, kCentral>(x, e1, e2, e3, to, k);
    const Known<T> known = {T(1), s.base, k.var_max, math.root(at_most(s.base, k.var_max))};
    return draw(choose<kFit>(s.mean, s.excess, s.third, u, known, p, math), z);
  }
  const Cumulants<T> d = posterior<kCentral, kFree>(x, e1, e2, e3, to, k);
  const T third = kFree ? within(d.third, d.var, Range<T>{d.mean - k.lo, k.hi - d.mean}, math) : d.third;
  const Component<T> of_x_0 = choose<kFit>(d.mean, d.var, third, u, Known<T>{k.B2, k.c, k.var_max, k.std}, p, math);
  return draw(Component<T>{fma(k.B, of_x_0.mean, k.A * x), of_x_0.std}, z);
}

// The part of the variance that the means may not use. Only the closed fits look at the floor. A negative variance, as
// rounding leaves, counts as zero.
template <Fit kFit, typename T>
GMS_HD T base_of(T var, T floor) {
  const T whole = at_least(var, T(0));
  return kFit == Fit::kExact || kFit == Fit::kFree ? at_most(whole, floor) : whole;
}
template <Fit kFit, typename T>
GMS_HD T excess_of(T var, T floor) {
  return kFit == Fit::kExact || kFit == Fit::kFree ? at_least(var - floor, T(0)) : T(0);
}

template <Fit kFit, typename T, typename Math = Ieee>
GMS_HD Mixture<T> fit_mixture_above(T mean, T var, T third, T floor, const FitParameters<T>& p, Math&& math = Math{}) {
  return fit_mixture<kFit>(mean, base_of<kFit>(var, floor), excess_of<kFit>(var, floor), third, p, math);
}

template <Fit kFit, typename T, typename Math = Ieee>
GMS_HD T sample_mixture(T mean, T var, T third, T floor, T z, T u, const FitParameters<T>& p, Math&& math = Math{}) {
  const T base = base_of<kFit>(var, floor);
  const Known<T> known = {T(1), base, T(INFINITY), math.root(base)};
  return draw(choose<kFit>(mean, excess_of<kFit>(var, floor), third, u, known, p, math), z);
}

}  // namespace gms
