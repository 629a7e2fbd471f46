// 16-bit floating point numbers, one at a time.
#pragma once

#include <cstdint>
#include <cstring>

namespace rookery {

inline uint16_t read_u16(const void* place) {
  uint16_t result;
  std::memcpy(&result, place, 2);
  return result;
}

inline float float_of_bits(uint32_t bits) {
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline uint32_t bits_of_float(float x) {
  uint32_t result;
  std::memcpy(&result, &x, 4);
  return result;
}

inline float from_bf16(uint16_t half) { return float_of_bits(static_cast<uint32_t>(half) << 16); }

// To the nearest, halves to even.
inline uint16_t to_bf16(float x) {
  if (x != x) return 0x7fc0;
  uint32_t bits = bits_of_float(x);
  return static_cast<uint16_t>((bits + ((bits >> 16) & 1) + 0x7fff) >> 16);
}

inline float from_f16(uint16_t half) {
  uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, bits = half & 0x7fffu;
  if (bits >= 0x7c00) return float_of_bits(sign | 0x7f800000u | ((bits & 0x3ff) << 13));
  // With the exponent as it is, the value is 2^-112 of what it should be; denormal numbers come right as well.
  return float_of_bits(sign | bits_of_float(float_of_bits(bits << 13) * 0x1p112f));
}

// To the nearest, halves to even; infinity above 65519.
inline uint16_t to_f16(float x) {
  uint32_t bits = bits_of_float(x);
  uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 0x7e00;
  if (bits >= 0x477ff000u) return sign | 0x7c00;
  if (bits < 0x38800000u) {
    // Denormal: the sum with 0.5 shifts the bits into place and rounds them.
    float moved = float_of_bits(bits) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of_float(moved) - 0x3f000000u));
  }
  uint32_t odd = (bits >> 13) & 1;
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfff + odd) >> 13));
}

}  // namespace rookery
