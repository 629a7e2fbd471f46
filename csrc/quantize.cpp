#include "quantize.h"

#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "numbers.h"

namespace rookery {
namespace {

constexpr int kBlocksAtATime = 64;

// To the nearest integer, halves to even, within bounds; the lower bound for what is no number.
float rounded(float x, float low, float high) {
  x = x > low ? x : low;
  x = x < high ? x : high;
  return (x + 12582912.0f) - 12582912.0f;
}

void store_q4(const float* x, float scale, uint8_t* block) {
  uint16_t half = to_f16(scale);
  std::memcpy(block, &half, 2);
  float exact = from_f16(half), inverse = exact != 0 ? 1.0f / exact : 0.0f;
  for (int i = 0; i < 16; i++) {
    int low = static_cast<int>(rounded(x[i] * inverse, -8, 7)) + 8;
    int high = static_cast<int>(rounded(x[16 + i] * inverse, -8, 7)) + 8;
    block[2 + i] = static_cast<uint8_t>(low | high << 4);
  }
}

}  // namespace

void quantize_q8_0(const float* x, int64_t n, uint8_t* blocks) {
  for (int64_t start = 0; start < n; start += 32, blocks += kQ8Bytes) {
    // As integers, absolute values have the same order, and what is no number is above all.
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++) bits = std::max(bits, bits_of_float(x[start + i]) & 0x7fffffffu);
    float largest = float_of_bits(bits);
    uint16_t scale = to_f16(largest / 127.0f);
    // Below the normal numbers of 16 bits a scale may be rounded down so far that the largest weight is cut.
    if (from_f16(scale) * 127.49f < largest) scale++;
    std::memcpy(blocks, &scale, 2);
    float exact = from_f16(scale), inverse = exact > 0 ? 1.0f / exact : 0.0f;
    for (int i = 0; i < 32; i++)
      blocks[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(rounded(x[start + i] * inverse, -127, 127)));
  }
}

void quantize_q4_0(const float* x, int64_t n, uint8_t* blocks) {
  float scales[kBlocksAtATime];
  for (int64_t start = 0; start < n; start += 32 * kBlocksAtATime) {
    int64_t count = std::min<int64_t>((n - start) / 32, kBlocksAtATime);
    kernels().quantize.scales_q4(x + start, count, scales);
    for (int64_t i = 0; i < count; i++, blocks += kQ4Bytes) store_q4(x + start + 32 * i, scales[i], blocks);
  }
}

}  // namespace rookery
