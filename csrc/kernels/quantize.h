// The search for the scales of 4-bit blocks: sixteen candidates at once, one in each lane.
//
// A candidate s makes the integers q = round(x / s) within -8 and 7. For these integers the best scale is
// sum(x q) / sum(q q), and its squared error is sum(x x) - sum(x q)^2 / sum(q q). Products and sums are rounded
// one by one on every instruction set, so that all of them choose the same scale.
#pragma once

#include "quantize.h"

namespace rookery::ROOKERY_LANES {
namespace {

// What the largest weight of a block becomes under each candidate, before rounding: beyond 8 it is cut to 8.
constexpr float kCandidates[16] = {6.5f,  6.93f,  7.36f,  7.79f,  8.21f,  8.64f,  9.07f,  9.5f,
                                   -6.5f, -6.93f, -7.36f, -7.79f, -8.21f, -8.64f, -9.07f, -9.5f};

inline void scales_q4(const float* x, int64_t blocks, float* scales) {
  // A sum with 1.5 * 2^23 rounds to integers, in plain C++ without a call for each lane.
  const Floats low = broadcast(-8.0f), high = broadcast(7.0f), rounder = broadcast(12582912.0f);
  for (int64_t block = 0; block < blocks; block++, x += 32) {
    float largest = maximum(max(abs(load(x)), abs(load(x + 16))));
    if (!(largest > 0)) {
      scales[block] = largest;
      continue;
    }
    Floats inverse = load(kCandidates) / broadcast(largest);
    Floats scale = broadcast(0.0f), gain = broadcast(0.0f);
    // Twice: the second time the best scale for the first integers makes the integers.
    for (int pass = 0; pass < 2; pass++) {
      Floats products = broadcast(0.0f), squares = broadcast(0.0f);
      for (int i = 0; i < 32; i++) {
        Floats weight = broadcast(x[i]);
        Floats q = (min(max(weight * inverse, low), high) + rounder) - rounder;
        products = products + weight * q;
        squares = squares + q * q;
      }
      scale = products / squares;
      inverse = squares / products;
      gain = products * scale;
    }
    float all_gains[16], all_scales[16];
    store(all_gains, gain);
    store(all_scales, scale);
    int best = 0;
    for (int i = 1; i < 16; i++)
      if (all_gains[i] > all_gains[best]) best = i;
    scales[block] = all_scales[best];
  }
}

QuantizeKernels quantize_kernels() { return {.scales_q4 = scales_q4}; }

}  // namespace
}  // namespace rookery::ROOKERY_LANES
