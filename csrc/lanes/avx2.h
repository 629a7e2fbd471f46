// Sixteen lanes on AVX2, FMA and F16C: two registers of eight. With AVX-VNNI where the compiler is told to use
// it. See lanes/portable.h for what each operation means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define ROOKERY_INLINE inline __attribute__((always_inline))

namespace rookery::ROOKERY_LANES {

constexpr int kTokensPerTile = 2;  // 16 registers of half the width: 4 for sums, 4 for totals, the rest to work with

struct Floats {
  __m256 a, b;
};
struct Ints {
  __m256i a, b;
};
struct Bytes {
  __m256i a, b;
};

ROOKERY_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

ROOKERY_INLINE Floats broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
ROOKERY_INLINE Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
ROOKERY_INLINE Floats load(const float* p, int n) {
  return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
}
ROOKERY_INLINE void store(float* p, Floats x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
ROOKERY_INLINE void store(float* p, Floats x, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), x.a);
  _mm256_maskstore_ps(p + 8, first_lanes(n - 8), x.b);
}

#define ROOKERY_BOTH(name, intrinsic) \
  ROOKERY_INLINE Floats name(Floats x, Floats y) { return {intrinsic(x.a, y.a), intrinsic(x.b, y.b)}; }
ROOKERY_BOTH(operator+, _mm256_add_ps)
ROOKERY_BOTH(operator-, _mm256_sub_ps)
ROOKERY_BOTH(operator*, _mm256_mul_ps)
ROOKERY_BOTH(operator/, _mm256_div_ps)
ROOKERY_BOTH(max, _mm256_max_ps)
ROOKERY_BOTH(min, _mm256_min_ps)
#undef ROOKERY_BOTH

ROOKERY_INLINE Floats fma(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
ROOKERY_INLINE uint32_t nonzero(Floats x) {
  __m256 none = _mm256_setzero_ps();
  int low = _mm256_movemask_ps(_mm256_cmp_ps(x.a, none, _CMP_NEQ_UQ));
  int high = _mm256_movemask_ps(_mm256_cmp_ps(x.b, none, _CMP_NEQ_UQ));
  return static_cast<uint32_t>(low | high << 8);
}
ROOKERY_INLINE Floats abs(Floats x) {
  __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
ROOKERY_INLINE Floats sqrt(Floats x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
ROOKERY_INLINE Floats round(Floats x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}
ROOKERY_INLINE __m256 power_of_two(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
ROOKERY_INLINE Floats power_of_two(Floats n) { return {power_of_two(n.a), power_of_two(n.b)}; }
ROOKERY_INLINE __m256 where_positive(__m256 x, __m256 a, __m256 b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ));
}
ROOKERY_INLINE Floats where_positive(Floats x, Floats a, Floats b) {
  return {where_positive(x.a, a.a, b.a), where_positive(x.b, a.b, b.b)};
}
template <int S>
ROOKERY_INLINE void exchange(__m256& x, __m256& y) {
  __m256 first = x;
  if constexpr (S == 4) {
    x = _mm256_permute2f128_ps(x, y, 0x20);
    y = _mm256_permute2f128_ps(first, y, 0x31);
  } else if constexpr (S == 2) {
    x = _mm256_shuffle_ps(x, y, 0x44);
    y = _mm256_shuffle_ps(first, y, 0xee);
  } else {
    x = _mm256_blend_ps(x, _mm256_moveldup_ps(y), 0xaa);
    y = _mm256_blend_ps(_mm256_movehdup_ps(first), y, 0xaa);
  }
}
template <int S>
ROOKERY_INLINE void exchange(Floats& x, Floats& y) {
  if constexpr (S == 8) {
    __m256 moved = x.b;
    x.b = y.a;
    y.a = moved;
  } else {
    exchange<S>(x.a, y.a);
    exchange<S>(x.b, y.b);
  }
}
ROOKERY_INLINE float sum(Floats x) {
  __m256 eight = _mm256_add_ps(x.a, x.b);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
ROOKERY_INLINE float maximum(Floats x) {
  __m256 eight = _mm256_max_ps(x.a, x.b);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

ROOKERY_INLINE __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
ROOKERY_INLINE __m256 widen_bf16(__m128i half) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
ROOKERY_INLINE Floats load_bf16(const uint16_t* p) { return {widen_bf16(load_128(p)), widen_bf16(load_128(p + 8))}; }
ROOKERY_INLINE __m256i narrow_bf16(__m256 x) {
  __m256i bits = _mm256_castps_si256(x);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(nan));
}
ROOKERY_INLINE void store_bf16(uint16_t* p, Floats x) {
  __m256i packed = _mm256_packus_epi32(narrow_bf16(x.a), narrow_bf16(x.b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
ROOKERY_INLINE Floats load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))};
}
ROOKERY_INLINE void store_s8(int8_t* p, Floats x) {
  __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
  words = _mm256_permute4x64_epi64(words, 0xd8);
  __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

ROOKERY_INLINE Bytes load_bytes(const void* p) {
  const __m256i* halves = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
ROOKERY_INLINE Bytes low_nibbles(Bytes x) {
  __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
ROOKERY_INLINE Bytes high_nibbles(Bytes x) {
  __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(x.b, 4), mask)};
}

ROOKERY_INLINE __m256i four_bytes(const void* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}
ROOKERY_INLINE Ints start_q4(int32_t correction) {
  return {_mm256_set1_epi32(correction), _mm256_set1_epi32(correction)};
}
#ifdef __AVXVNNI__
ROOKERY_INLINE Ints start_q8(int32_t correction) { return start_q4(correction); }
ROOKERY_INLINE Ints dot_q4(Ints sum, Bytes weights, const int8_t* x) {
  __m256i four = four_bytes(x);
  return {_mm256_dpbusd_avx_epi32(sum.a, weights.a, four), _mm256_dpbusd_avx_epi32(sum.b, weights.b, four)};
}
ROOKERY_INLINE Ints dot_q8(Ints sum, Bytes weights, const int8_t* x) { return dot_q4(sum, weights, x); }
#else
ROOKERY_INLINE __m256i add_pairs(__m256i sum, __m256i weights, __m256i x) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(weights, x), _mm256_set1_epi16(1)));
}
ROOKERY_INLINE Ints dot_q4(Ints sum, Bytes weights, const int8_t* x) {
  __m256i four = four_bytes(x);
  return {add_pairs(sum.a, weights.a, four), add_pairs(sum.b, weights.b, four)};
}
// maddubs adds two products in 16 bits, which 255 * 127 * 2 would overflow: so the offset of 128 is taken off
// here, and the sign of each weight moves to x. Nothing is left to correct.
ROOKERY_INLINE Ints start_q8(int32_t) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
ROOKERY_INLINE Ints dot_q8(Ints sum, Bytes weights, const int8_t* x) {
  __m256i four = four_bytes(x), top = _mm256_set1_epi8(-128);
  __m256i a = _mm256_xor_si256(weights.a, top), b = _mm256_xor_si256(weights.b, top);
  return {add_pairs(sum.a, _mm256_abs_epi8(a), _mm256_sign_epi8(four, a)),
          add_pairs(sum.b, _mm256_abs_epi8(b), _mm256_sign_epi8(four, b))};
}
#endif
// Within each half of a register, so that quarter q of a pair of registers i has rows 16 q + 4 i to 16 q + 4 i + 3.
ROOKERY_INLINE void interleave(__m256i& x0, __m256i& x1, __m256i& x2, __m256i& x3) {
  __m256i low01 = _mm256_unpacklo_epi8(x0, x1), high01 = _mm256_unpackhi_epi8(x0, x1);
  __m256i low23 = _mm256_unpacklo_epi8(x2, x3), high23 = _mm256_unpackhi_epi8(x2, x3);
  x0 = _mm256_unpacklo_epi16(low01, low23);
  x1 = _mm256_unpackhi_epi16(low01, low23);
  x2 = _mm256_unpacklo_epi16(high01, high23);
  x3 = _mm256_unpackhi_epi16(high01, high23);
}
ROOKERY_INLINE void interleave(Bytes (&x)[4]) {
  interleave(x[0].a, x[1].a, x[2].a, x[3].a);
  interleave(x[0].b, x[1].b, x[2].b, x[3].b);
}
ROOKERY_INLINE void restore_order(Ints (&x)[4]) {
  Ints y[4] = {x[0], x[1], x[2], x[3]};
  x[0] = {_mm256_permute2x128_si256(y[0].a, y[1].a, 0x20), _mm256_permute2x128_si256(y[2].a, y[3].a, 0x20)};
  x[1] = {_mm256_permute2x128_si256(y[0].a, y[1].a, 0x31), _mm256_permute2x128_si256(y[2].a, y[3].a, 0x31)};
  x[2] = {_mm256_permute2x128_si256(y[0].b, y[1].b, 0x20), _mm256_permute2x128_si256(y[2].b, y[3].b, 0x20)};
  x[3] = {_mm256_permute2x128_si256(y[0].b, y[1].b, 0x31), _mm256_permute2x128_si256(y[2].b, y[3].b, 0x31)};
}
ROOKERY_INLINE Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
ROOKERY_INLINE __m256 add_bf16(__m256 sum, __m256i weights, __m256i x) {
  __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(weights, upper));
  __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(weights, 16));
  sum = _mm256_fmadd_ps(even, _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), sum);
  return _mm256_fmadd_ps(odd, _mm256_castsi256_ps(_mm256_and_si256(x, upper)), sum);
}
ROOKERY_INLINE Floats dot_bf16(Floats sum, Bytes weights, const uint16_t* x) {
  __m256i two = four_bytes(x);
  return {add_bf16(sum.a, weights.a, two), add_bf16(sum.b, weights.b, two)};
}

}  // namespace rookery::ROOKERY_LANES
