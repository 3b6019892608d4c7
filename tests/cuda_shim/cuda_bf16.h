#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {  // to nearest, ties to even
  uint32_t i;
  std::memcpy(&i, &x, sizeof i);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((i + 0x7fffu + (i >> 16 & 1u)) >> 16)};
}
