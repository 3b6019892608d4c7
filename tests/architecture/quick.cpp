// Are the roots and quotients of csrc/cuda/quick.cuh those of IEEE 754? Prints what was tried, fails at the first that
// is not. Compiled by test_build.py with tests/cuda_shim, whose rough reciprocals are correctly rounded.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "cuda/quick.cuh"

using namespace gms;

namespace {

long tried = 0;

void expect(float got, float want, const char* what, float a, float b) {
  ++tried;
  if (bits_of(got) == bits_of(want)) return;
  std::printf("%s of %a, %a is %a, not %a\n", what, a, b, got, want);
  std::exit(1);
}

void check_root(float x) {
  Quick math;
  const float got = math.root(x);
  if (math.reliable()) expect(got, std::sqrt(x), "root", x, 0);
}

void check_quotient(float a, float b) {
  Quick math;
  expect(math.quotient(a, math.ordinary(b)), a / b, "quotient", a, b);
}

// The quotients that lie nearest to the middle between two numbers: 2^(s+1) A = M B + T, M odd, T small.
void check_hard_quotients(int64_t B) {
  for (int s = 23; s <= 24; ++s) {
    const int64_t modulus = int64_t{1} << (s + 1);
    const int v = __builtin_ctzll(B);
    uint64_t inverse = B >> v;
    for (int i = 0; i < 6; ++i) inverse *= 2 - (B >> v) * inverse;
    for (int T = -4; T <= 4; ++T) {
      if (T == 0 || T % (1 << v) != 0) continue;
      const uint64_t first = static_cast<uint64_t>(-(static_cast<int64_t>(T) >> v)) * inverse & ((modulus >> v) - 1);
      for (int64_t M = first; M < int64_t{1} << 25; M += modulus >> v) {
        const int64_t A = (M * B + T) / modulus;
        if (M < 1 << 24 || M % 2 == 0 || A < 1 << 23 || A >= 1 << 24) continue;
        check_quotient(std::ldexp(static_cast<float>(A), -30), std::ldexp(static_cast<float>(B), -23));
      }
    }
  }
}

}  // namespace

int main() {
  for (int32_t i = bits_of(1.0f); i < bits_of(4.0f); ++i) {
    for (int e : {-60, -20, 0, 58}) check_root(std::ldexp(from_bits(i), e));
  }
  for (int32_t i = 0; i < 0x7f800000; i += 9973) check_root(from_bits(i));
  check_root(0.0f), check_root(-0.0f);
  for (int64_t B = 1 << 23; B < 1 << 24; ++B) check_hard_quotients(B);
  uint64_t state = 88172645463325252u;
  for (int i = 0; i < 1 << 24; ++i) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    const int e = static_cast<int>(state >> 46 & 127) - 64, f = static_cast<int>(state >> 53 & 63) - 32;
    check_quotient(std::ldexp(1 + (state & 0x7fffff) * 0x1p-23f, e),
                   std::ldexp(1 + (state >> 23 & 0x7fffff) * 0x1p-23f, f));
  }
  std::printf("%ld tried\n", tried);
}
