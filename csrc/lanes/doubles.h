// Doubles, as many as a register holds, by the vectors that compilers know themselves: one text for every
// instruction set. Where a sum of probabilities must not lose the small ones, floats do not do.
#pragma once

#include <cstdint>

namespace rookery::ROOKERY_LANES {

#if defined(__AVX512F__)
#define ROOKERY_DOUBLES 64
#elif defined(__AVX__)
#define ROOKERY_DOUBLES 32
#else
#define ROOKERY_DOUBLES 16
#endif
using Doubles __attribute__((vector_size(ROOKERY_DOUBLES))) = double;
using Longs __attribute__((vector_size(ROOKERY_DOUBLES))) = int64_t;
constexpr int kDoubles = ROOKERY_DOUBLES / 8;
#undef ROOKERY_DOUBLES

ROOKERY_INLINE Doubles every(double x) { return Doubles{} + x; }
ROOKERY_INLINE Doubles load(const double* p) {
  Doubles result;
  __builtin_memcpy(&result, p, sizeof result);
  return result;
}
ROOKERY_INLINE void store(double* p, Doubles x) { __builtin_memcpy(p, &x, sizeof x); }
ROOKERY_INLINE Doubles larger(Doubles a, Doubles b) { return a > b ? a : b; }
ROOKERY_INLINE Doubles smaller(Doubles a, Doubles b) { return a < b ? a : b; }

// Integers in the order of doubles (no NaN; -0 is 0).
ROOKERY_INLINE uint64_t ordered(double x) {
  int64_t bits;
  x += 0.0;
  __builtin_memcpy(&bits, &x, 8);
  return static_cast<uint64_t>(bits ^ ((bits >> 63) | INT64_MIN));
}

// e^x for x <= 0, within 2 units in the last place; 0 where it would be denormal (below -708.7).
ROOKERY_INLINE Doubles exp_of_negative(Doubles x) {
  // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts so that n times the first is exact. Added to 1.5 * 2^52 a
  // number becomes an integer, in the lower bits. e^r by its series to r^12 / 12!; at -709 the exponent is that of 0.
  constexpr double kShift = 0x1.8p52;
  x = larger(x, every(-709.0));
  Doubles shifted = x * 0x1.71547652b82fep0 + kShift;
  Doubles n = shifted - kShift;
  Doubles r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
  Doubles p = every(1.0 / 479001600);
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  Longs power = (reinterpret_cast<Longs>(shifted) + 1023) << 52;
  return p * reinterpret_cast<Doubles>(power);
}

}  // namespace rookery::ROOKERY_LANES
