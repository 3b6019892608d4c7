// Prints inputs and mixtures of the headers in csrc/gms instantiated in double, for test_build.py.
#include <cstdio>
#include <initializer_list>
#include <limits>

#include "gms/step.h"

using namespace gms;

double random_unit() {
  static uint64_t state = 1;
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return static_cast<double>(state >> 11) * 0x1p-53;
}

double normal() {
  double sum = -6;
  for (int i = 0; i < 12; ++i) sum += random_unit();
  return sum;
}

template <Fit kFit>
void show(double x, double e1, double e2, double e3) {
  const double inf = std::numeric_limits<double>::infinity(), r = 0.8 / 0.6;
  const StepCoefficients<double> k = {1 / 0.6, r, r * r, -r * r * r, 0.5, 0.3, 0.3 * 0.3, 0.04, inf, 0.2, -1, 1};
  const double w = 1.0 / 3, p = w * (1 - w);
  const FitParameters<double> f = {w, p, 1 / p, 1 / (p * (1 - 2 * w)), 0.06, 1e-8, 5};
  const StepMoments<double> s = step_moments<false>(x, e1, e2, e3, e1, k);
  const Mixture<double> m = fit_mixture<kFit>(s.mean, s.base, s.excess, s.third, f);
  std::printf(" %.17g %.17g %.17g %.17g", m.weight, m.mean_a, m.mean_b, m.var);
  for (const double u : {0.2, 0.5}) {  // the two components for the fits that choose by weight 1/3
    std::printf(" %.17g", gms_step<kFit, Moments::kCumulant, false>(x, e1, e2, e3, e1, 0.7, u, k, f));
    std::printf(" %.17g", gms_step<kFit, Moments::kReleased, false>(x, e1, e2, e3, e1, 0.7, u, k, f));
  }
}

int main() {
  for (int i = 0; i < 20000; ++i) {
    const double x = normal(), e1 = normal(), r2 = 0.1 + 0.2 * random_unit();
    const double skew = std::copysign(0.5 + random_unit(), normal());
    const double e2 = r2 + e1 * e1, e3 = skew * r2 * std::sqrt(r2) + 3 * e1 * r2 + e1 * e1 * e1;
    std::printf("%.17g %.17g %.17g %.17g", x, e1, e2, e3);
    show<Fit::kExact>(x, e1, e2, e3);
    show<Fit::kFree>(x, e1, e2, e3);
    show<Fit::kAdan>(x, e1, e2, e3);
    show<Fit::kGaussian>(x, e1, e2, e3);
    std::printf("\n");
  }
}
