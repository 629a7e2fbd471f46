// Blocks of 32 weights as integers with a 16-bit scale, in GGML's forms (ggml-common.h of llama.cpp).
#pragma once

#include <cstdint>

namespace rookery {

constexpr int64_t kQ8Bytes = 34;  // f16 scale d, 32 signed bytes q: d q
constexpr int64_t kQ4Bytes =
    18;  // f16 scale d, 16 bytes: elements 0-15 in the lower halves, 16-31 in the upper: d (u - 8)

// n, a multiple of 32, floats to n / 32 blocks. Weights that are no numbers give blocks that are none.
//
// q8_0: the largest weight becomes 127. q4_0: of sixteen scales for each block, of both signs since -8 has no
// counterpart, the one with the least squared error, improved once by least squares; the sum of squared errors is
// about 11 % below that of taking the largest weight for 8.
void quantize_q8_0(const float* x, int64_t n, uint8_t* blocks);
void quantize_q4_0(const float* x, int64_t n, uint8_t* blocks);

// What an instruction set has for this.
struct QuantizeKernels {
  // The scale of each of `blocks` blocks for q4_0, before it is rounded to 16 bits.
  void (*scales_q4)(const float* x, int64_t blocks, float* scales);
};

}  // namespace rookery
