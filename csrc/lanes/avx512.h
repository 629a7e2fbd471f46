// Sixteen lanes on AVX-512 (F, BW, DQ, VL, VNNI, BF16). See lanes/portable.h for what each operation means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define ROOKERY_INLINE inline __attribute__((always_inline))

namespace rookery::ROOKERY_LANES {

constexpr int kTokensPerTile = 12;  // 12 sums of integers, 12 totals, a weight and a scale: 26 of 32 registers

struct Floats {
  __m512 v;
};
struct Ints {
  __m512i v;
};
struct Bytes {
  __m512i v;
};

ROOKERY_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

ROOKERY_INLINE Floats broadcast(float x) { return {_mm512_set1_ps(x)}; }
ROOKERY_INLINE Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
ROOKERY_INLINE Floats load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
ROOKERY_INLINE void store(float* p, Floats x) { _mm512_storeu_ps(p, x.v); }
ROOKERY_INLINE void store(float* p, Floats x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x.v); }

ROOKERY_INLINE Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
ROOKERY_INLINE Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
ROOKERY_INLINE Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
ROOKERY_INLINE Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
ROOKERY_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
ROOKERY_INLINE Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
ROOKERY_INLINE Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
ROOKERY_INLINE Floats abs(Floats a) { return {_mm512_abs_ps(a.v)}; }
ROOKERY_INLINE Floats sqrt(Floats a) { return {_mm512_sqrt_ps(a.v)}; }
ROOKERY_INLINE uint32_t nonzero(Floats a) { return _mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
ROOKERY_INLINE Floats round(Floats a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
ROOKERY_INLINE Floats power_of_two(Floats n) {
  return {
      _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23))};
}
ROOKERY_INLINE Floats where_positive(Floats x, Floats a, Floats b) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_GT_OQ), b.v, a.v)};
}
template <int S>
ROOKERY_INLINE void exchange(Floats& a, Floats& b) {
  __m512 first = a.v;
  if constexpr (S == 8) {
    a.v = _mm512_mask_shuffle_f32x4(a.v, 0xff00, b.v, b.v, 0x44);
    b.v = _mm512_mask_shuffle_f32x4(b.v, 0x00ff, first, first, 0xee);
  } else if constexpr (S == 4) {
    a.v = _mm512_mask_shuffle_f32x4(a.v, 0xf0f0, b.v, b.v, 0xa0);
    b.v = _mm512_mask_shuffle_f32x4(b.v, 0x0f0f, first, first, 0xf5);
  } else if constexpr (S == 2) {
    a.v = _mm512_mask_permute_ps(a.v, 0xcccc, b.v, 0x44);
    b.v = _mm512_mask_permute_ps(b.v, 0x3333, first, 0xee);
  } else {
    a.v = _mm512_mask_moveldup_ps(a.v, 0xaaaa, b.v);
    b.v = _mm512_mask_movehdup_ps(b.v, 0x5555, first);
  }
}
ROOKERY_INLINE float sum(Floats a) { return _mm512_reduce_add_ps(a.v); }
ROOKERY_INLINE float maximum(Floats a) { return _mm512_reduce_max_ps(a.v); }

ROOKERY_INLINE Floats load_bf16(const uint16_t* p) {
  __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
ROOKERY_INLINE void store_bf16(uint16_t* p, Floats x) {
  // By integers, as the other sets do it: the instruction flushes denormal numbers to zero.
  __m512i bits = _mm512_castps_si512(x.v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}
ROOKERY_INLINE Floats load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
ROOKERY_INLINE void store_s8(int8_t* p, Floats x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x.v)));
}

ROOKERY_INLINE Bytes load_bytes(const void* p) { return {_mm512_loadu_si512(p)}; }
ROOKERY_INLINE Bytes low_nibbles(Bytes x) { return {_mm512_and_si512(x.v, _mm512_set1_epi8(15))}; }
ROOKERY_INLINE Bytes high_nibbles(Bytes x) {
  return {_mm512_and_si512(_mm512_srli_epi16(x.v, 4), _mm512_set1_epi8(15))};
}

ROOKERY_INLINE __m512i four_bytes(const void* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}
ROOKERY_INLINE Ints start_q8(int32_t correction) { return {_mm512_set1_epi32(correction)}; }
ROOKERY_INLINE Ints start_q4(int32_t correction) { return {_mm512_set1_epi32(correction)}; }
ROOKERY_INLINE Ints dot_q8(Ints sum, Bytes weights, const int8_t* x) {
  return {_mm512_dpbusd_epi32(sum.v, weights.v, four_bytes(x))};
}
ROOKERY_INLINE Ints dot_q4(Ints sum, Bytes weights, const int8_t* x) {
  return {_mm512_dpbusd_epi32(sum.v, weights.v, four_bytes(x))};
}
// Within each quarter of a register, so that quarter q of result i has rows 16 q + 4 i to 16 q + 4 i + 3.
ROOKERY_INLINE void interleave(Bytes (&x)[4]) {
  __m512i low01 = _mm512_unpacklo_epi8(x[0].v, x[1].v), high01 = _mm512_unpackhi_epi8(x[0].v, x[1].v);
  __m512i low23 = _mm512_unpacklo_epi8(x[2].v, x[3].v), high23 = _mm512_unpackhi_epi8(x[2].v, x[3].v);
  x[0].v = _mm512_unpacklo_epi16(low01, low23);
  x[1].v = _mm512_unpackhi_epi16(low01, low23);
  x[2].v = _mm512_unpacklo_epi16(high01, high23);
  x[3].v = _mm512_unpackhi_epi16(high01, high23);
}
ROOKERY_INLINE void restore_order(Ints (&x)[4]) {
  __m512i a = _mm512_shuffle_i32x4(x[0].v, x[1].v, 0x44), b = _mm512_shuffle_i32x4(x[0].v, x[1].v, 0xee);
  __m512i c = _mm512_shuffle_i32x4(x[2].v, x[3].v, 0x44), d = _mm512_shuffle_i32x4(x[2].v, x[3].v, 0xee);
  x[0].v = _mm512_shuffle_i32x4(a, c, 0x88);
  x[1].v = _mm512_shuffle_i32x4(a, c, 0xdd);
  x[2].v = _mm512_shuffle_i32x4(b, d, 0x88);
  x[3].v = _mm512_shuffle_i32x4(b, d, 0xdd);
}
ROOKERY_INLINE Floats to_floats(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }
ROOKERY_INLINE Floats dot_bf16(Floats sum, Bytes weights, const uint16_t* x) {
  return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(weights.v), reinterpret_cast<__m512bh>(four_bytes(x)))};
}

}  // namespace rookery::ROOKERY_LANES
