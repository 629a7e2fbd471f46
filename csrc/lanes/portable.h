// Sixteen lanes in plain C++: what every operation means. A compiler makes of it what it can.
//
// All kernels are written once, over these lanes, and compiled once for each instruction set, in a namespace of
// its own: ROOKERY_LANES. The other files of this folder have the same names for the same values, rounding aside.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define ROOKERY_INLINE inline __attribute__((always_inline))

namespace rookery::ROOKERY_LANES {

constexpr int kTokensPerTile = 2;  // tokens that share a weight in registers

struct Floats {
  float v[16];
};
struct Ints {
  int32_t v[16];
};
// 16 lanes of 4 bytes: four 8-bit weights, or two of bf16, for each of 16 rows.
struct Bytes {
  uint8_t v[64];
};

#define ROOKERY_LANES_OF(type, expression)                 \
  type result;                                             \
  for (int i = 0; i < 16; i++) result.v[i] = (expression); \
  return result

ROOKERY_INLINE Floats broadcast(float x) { ROOKERY_LANES_OF(Floats, x); }
ROOKERY_INLINE Floats load(const float* p) { ROOKERY_LANES_OF(Floats, p[i]); }
// The first n lanes; the others are 0, and their memory is not touched.
ROOKERY_INLINE Floats load(const float* p, int n) { ROOKERY_LANES_OF(Floats, i < n ? p[i] : 0.0f); }
ROOKERY_INLINE void store(float* p, Floats x) { std::memcpy(p, x.v, sizeof x.v); }
ROOKERY_INLINE void store(float* p, Floats x, int n) {
  for (int i = 0; i < n && i < 16; i++) p[i] = x.v[i];
}

ROOKERY_INLINE Floats operator+(Floats a, Floats b) { ROOKERY_LANES_OF(Floats, a.v[i] + b.v[i]); }
ROOKERY_INLINE Floats operator-(Floats a, Floats b) { ROOKERY_LANES_OF(Floats, a.v[i] - b.v[i]); }
ROOKERY_INLINE Floats operator*(Floats a, Floats b) { ROOKERY_LANES_OF(Floats, a.v[i] * b.v[i]); }
ROOKERY_INLINE Floats operator/(Floats a, Floats b) { ROOKERY_LANES_OF(Floats, a.v[i] / b.v[i]); }
// a b + c; rounded once where the machine can.
ROOKERY_INLINE Floats fma(Floats a, Floats b, Floats c) { ROOKERY_LANES_OF(Floats, a.v[i] * b.v[i] + c.v[i]); }
// b where either is NaN.
ROOKERY_INLINE Floats max(Floats a, Floats b) { ROOKERY_LANES_OF(Floats, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
ROOKERY_INLINE Floats min(Floats a, Floats b) { ROOKERY_LANES_OF(Floats, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
ROOKERY_INLINE Floats abs(Floats a) { ROOKERY_LANES_OF(Floats, std::fabs(a.v[i])); }
ROOKERY_INLINE Floats sqrt(Floats a) { ROOKERY_LANES_OF(Floats, std::sqrt(a.v[i])); }
// Bit i: whether lane i is not zero; NaN is not.
ROOKERY_INLINE uint32_t nonzero(Floats a) {
  uint32_t bits = 0;
  for (int i = 0; i < 16; i++) bits |= (a.v[i] != 0 ? 1u : 0u) << i;
  return bits;
}
// To the nearest integer, halves to the even one.
ROOKERY_INLINE Floats round(Floats a) { ROOKERY_LANES_OF(Floats, std::nearbyintf(a.v[i])); }
// 2^n for integers n from -126 to 127; 0 for -127; anything for NaN.
ROOKERY_INLINE Floats power_of_two(Floats n) {
  Floats result;
  for (int i = 0; i < 16; i++) {
    float number = n.v[i] > -127 ? n.v[i] : -127;  // NaN has no integer
    uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(number) + 127) << 23;
    std::memcpy(&result.v[i], &bits, 4);
  }
  return result;
}
// a where x > 0, else b.
ROOKERY_INLINE Floats where_positive(Floats x, Floats a, Floats b) {
  ROOKERY_LANES_OF(Floats, x.v[i] > 0.0f ? a.v[i] : b.v[i]);
}
// Swaps a's lanes that have bit S (1, 2, 4 or 8) in their number with b's that do not have it.
template <int S>
ROOKERY_INLINE void exchange(Floats& a, Floats& b) {
  for (int i = 0; i < 16; i++) {
    if ((i & S) != 0) continue;
    float moved = a.v[i + S];
    a.v[i + S] = b.v[i];
    b.v[i] = moved;
  }
}
ROOKERY_INLINE float sum(Floats a) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; i++) a.v[i] += a.v[i + width];
  return a.v[0];
}
ROOKERY_INLINE float maximum(Floats a) {
  float result = a.v[0];
  for (int i = 1; i < 16; i++) result = a.v[i] > result ? a.v[i] : result;
  return result;
}

ROOKERY_INLINE float widen_bf16(uint16_t half) {
  uint32_t bits = static_cast<uint32_t>(half) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
ROOKERY_INLINE uint16_t narrow_bf16(float x) {
  if (x != x) return 0x7fc0;
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + ((bits >> 16) & 1) + 0x7fff) >> 16);
}
ROOKERY_INLINE float widen_f16(uint16_t half) {
  uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, bits = half & 0x7fff;
  float result;
  if (bits >= 0x7c00) {
    bits = sign | 0x7f800000u | ((bits & 0x3ff) << 13);
  } else {
    // With the exponent as it is, the value is 2^-112 of what it should be; denormal numbers come right as well.
    bits <<= 13;
    std::memcpy(&result, &bits, 4);
    result *= 0x1p112f;
    std::memcpy(&bits, &result, 4);
    bits |= sign;
  }
  std::memcpy(&result, &bits, 4);
  return result;
}
ROOKERY_INLINE Floats load_bf16(const uint16_t* p) { ROOKERY_LANES_OF(Floats, widen_bf16(p[i])); }
// To the nearest, halves to even.
ROOKERY_INLINE void store_bf16(uint16_t* p, Floats x) {
  for (int i = 0; i < 16; i++) p[i] = narrow_bf16(x.v[i]);
}
ROOKERY_INLINE Floats load_f16(const uint16_t* p) { ROOKERY_LANES_OF(Floats, widen_f16(p[i])); }
// Rounded to the nearest integer; x must be within -128 and 127.
ROOKERY_INLINE void store_s8(int8_t* p, Floats x) {
  for (int i = 0; i < 16; i++) p[i] = static_cast<int8_t>(static_cast<int32_t>(std::nearbyintf(x.v[i])));
}

ROOKERY_INLINE Bytes load_bytes(const void* p) {
  Bytes result;
  std::memcpy(result.v, p, 64);
  return result;
}
ROOKERY_INLINE Bytes low_nibbles(Bytes x) {
  for (int i = 0; i < 64; i++) x.v[i] &= 15;
  return x;
}
ROOKERY_INLINE Bytes high_nibbles(Bytes x) {
  for (int i = 0; i < 64; i++) x.v[i] >>= 4;
  return x;
}

// Dot products of unsigned weights with signed x: the four x go to every lane. Weights are stored with an offset
// (128 in q8, 8 in q4), which a sum makes good by starting from minus offset * (sum of x over the block).
ROOKERY_INLINE Ints start_q8(int32_t correction) { ROOKERY_LANES_OF(Ints, correction); }
ROOKERY_INLINE Ints start_q4(int32_t correction) { ROOKERY_LANES_OF(Ints, correction); }
ROOKERY_INLINE Ints dot_q8(Ints sum, Bytes weights, const int8_t* x) {
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 4; j++) sum.v[i] += weights.v[4 * i + j] * x[j];
  return sum;
}
ROOKERY_INLINE Ints dot_q4(Ints sum, Bytes weights, const int8_t* x) { return dot_q8(sum, weights, x); }
ROOKERY_INLINE Floats to_floats(Ints x) { ROOKERY_LANES_OF(Floats, static_cast<float>(x.v[i])); }
// Four columns of 64 rows of bytes to four groups of 16 rows with four columns each, for dot products. A set may
// leave the rows in another order, the same in all columns: sums of such products are put right by restore_order.
ROOKERY_INLINE void interleave(Bytes (&columns)[4]) {
  uint8_t rows[4][64];
  for (int row = 0; row < 64; row++)
    for (int c = 0; c < 4; c++) rows[row / 16][row % 16 * 4 + c] = columns[c].v[row];
  std::memcpy(columns, rows, sizeof rows);
}
ROOKERY_INLINE void restore_order(Ints (&)[4]) {}
// Adds the products of two bf16 weights with the same two x in every lane.
ROOKERY_INLINE Floats dot_bf16(Floats sum, Bytes weights, const uint16_t* x) {
  uint16_t pairs[32];
  std::memcpy(pairs, weights.v, 64);
  float even = widen_bf16(x[0]), odd = widen_bf16(x[1]);
  for (int i = 0; i < 16; i++) {
    sum.v[i] += widen_bf16(pairs[2 * i]) * even;
    sum.v[i] += widen_bf16(pairs[2 * i + 1]) * odd;
  }
  return sum;
}

#undef ROOKERY_LANES_OF

}  // namespace rookery::ROOKERY_LANES
