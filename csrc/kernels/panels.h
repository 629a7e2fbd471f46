// Matrix kernels: one shape of loop for every number type (the layouts are described in matrix.h).
//
//     for each group of 16 rows, for each block of 32 columns:
//         for 64 bytes of weights:  for each token of the tile:  sum[token] += weights * x[token]
//         total[token] += sum[token] * scales
#pragma once

#include "lanes/functions.h"

namespace rookery::ROOKERY_LANES {
namespace {

// Loops over registers must be unrolled, or the compiler keeps the registers in memory.
#define ROOKERY_UNROLL _Pragma("GCC unroll 32")

// One block of 32 columns of a tile's inputs: `values` of its first token; those of the next one follow.
struct InputBlock {
  const uint8_t* values;
  const float* scales;         // one for each token
  const int32_t* corrections;  // one for each token
};

// What a number type does with one block of 32 columns of 16 rows, for N tokens.
template <Type>
struct Block;

template <>
struct Block<Type::fp32> {
  template <int N>
  ROOKERY_INLINE static void add(Floats (&totals)[N], const uint8_t* weights, const uint16_t*, const InputBlock& x) {
    const float* values = reinterpret_cast<const float*>(x.values);
    ROOKERY_UNROLL for (int j = 0; j < kBlock; j++) {
      Floats w = load(reinterpret_cast<const float*>(weights) + 16 * j);
      ROOKERY_UNROLL for (int n = 0; n < N; n++) { totals[n] = fma(w, broadcast(values[kBlock * n + j]), totals[n]); }
    }
  }
};

template <>
struct Block<Type::bf16> {
  template <int N>
  ROOKERY_INLINE static void add(Floats (&totals)[N], const uint8_t* weights, const uint16_t*, const InputBlock& x) {
    const uint16_t* values = reinterpret_cast<const uint16_t*>(x.values);
    ROOKERY_UNROLL for (int j = 0; j < kBlock / 2; j++) {
      Bytes w = load_bytes(weights + 64 * j);
      ROOKERY_UNROLL for (int n = 0; n < N; n++) { totals[n] = dot_bf16(totals[n], w, values + kBlock * n + 2 * j); }
    }
  }
};

template <int N>
ROOKERY_INLINE void add_scaled(Floats (&totals)[N], const Ints (&sums)[N], const uint16_t* scales,
                               const float* x_scales) {
  Floats scale = load_f16(scales);
  ROOKERY_UNROLL for (int n = 0; n < N; n++) {
    totals[n] = fma(to_floats(sums[n]), scale * broadcast(x_scales[n]), totals[n]);
  }
}

template <>
struct Block<Type::q8> {
  template <int N>
  ROOKERY_INLINE static void add(Floats (&totals)[N], const uint8_t* weights, const uint16_t* scales,
                                 const InputBlock& x) {
    const int8_t* values = reinterpret_cast<const int8_t*>(x.values);
    Ints sums[N];
    ROOKERY_UNROLL for (int n = 0; n < N; n++) { sums[n] = start_q8(x.corrections[n]); }
    ROOKERY_UNROLL for (int j = 0; j < 8; j++) {
      Bytes w = load_bytes(weights + 64 * j);
      ROOKERY_UNROLL for (int n = 0; n < N; n++) { sums[n] = dot_q8(sums[n], w, values + kBlock * n + 4 * j); }
    }
    add_scaled(totals, sums, scales, x.scales);
  }
};

template <>
struct Block<Type::q4> {
  template <int N>
  ROOKERY_INLINE static void add(Floats (&totals)[N], const uint8_t* weights, const uint16_t* scales,
                                 const InputBlock& x) {
    const int8_t* values = reinterpret_cast<const int8_t*>(x.values);
    Ints sums[N];
    ROOKERY_UNROLL for (int n = 0; n < N; n++) { sums[n] = start_q4(x.corrections[n]); }
    ROOKERY_UNROLL for (int j = 0; j < 4; j++) {
      Bytes both = load_bytes(weights + 64 * j);
      Bytes low = low_nibbles(both), high = high_nibbles(both);
      ROOKERY_UNROLL for (int n = 0; n < N; n++) { sums[n] = dot_q4(sums[n], low, values + kBlock * n + 8 * j); }
      ROOKERY_UNROLL for (int n = 0; n < N; n++) { sums[n] = dot_q4(sums[n], high, values + kBlock * n + 8 * j + 4); }
    }
    add_scaled(totals, sums, scales, x.scales);
  }
};

// `blocks` blocks of a group of 16 rows.
struct Panel {
  const uint8_t* start;
  int64_t blocks;
  int64_t next;  // bytes to the group that is read after this one, or 0
  bool adds;     // to what is in y, for all but the first blocks
};

// A panel times N tokens.
template <Type type, int N>
ROOKERY_INLINE void tile(const Matrix& matrix, Panel panel, const Operand& x, int64_t token, float* y, int64_t y_stride,
                         int64_t rows) {
  y += token * y_stride;
  int count = rows < kLanes ? static_cast<int>(rows) : static_cast<int>(kLanes);
  Floats totals[N];
  ROOKERY_UNROLL for (int n = 0; n < N; n++) { totals[n] = panel.adds ? load(y + n * y_stride, count) : zero(); }
  InputBlock input = {x.values + token * kBlock * operand_value_bytes(type), x.scales + token, x.corrections + token};
  int64_t weight_bytes = kLanes * matrix.block_bytes();
  const uint8_t *weights = panel.start, *scales = panel.start;
  // Many tokens keep a group so long that prefetchers lose the thread: so the first tile brings in the next group.
  bool prefetches = N >= 8 && token == 0 && panel.next != 0;
  for (int64_t block = 0; block < panel.blocks; block++) {
    if (block % 2 == 0) {
      scales = weights;
      weights += matrix.scale_line();
    }
    if (prefetches)
      for (int64_t line = 0; line < weight_bytes; line += 64) __builtin_prefetch(weights + panel.next + line, 0, 2);
    Block<type>::add(totals, weights, reinterpret_cast<const uint16_t*>(scales + block % 2 * 32), input);
    weights += weight_bytes;
    input.values += x.tokens * kBlock * operand_value_bytes(type);
    input.scales += x.tokens;
    input.corrections += x.tokens;
  }
  ROOKERY_UNROLL for (int n = 0; n < N; n++) {
    if (count == kLanes)
      store(y + n * y_stride, totals[n]);
    else
      store(y + n * y_stride, totals[n], count);
  }
}

// A panel times all tokens from `token` on, in tiles of N tokens, then of fewer.
template <Type type, int N>
void all_tokens(const Matrix& matrix, const Panel& panel, const Operand& x, int64_t token, float* y, int64_t y_stride,
                int64_t rows) {
  for (; token + N <= x.tokens; token += N) tile<type, N>(matrix, panel, x, token, y, y_stride, rows);
  if constexpr (N > 1) {
    constexpr int kFewer = N > 8 ? 8 : N > 4 ? 4 : N > 2 ? 2 : 1;
    if (token < x.tokens) all_tokens<type, kFewer>(matrix, panel, x, token, y, y_stride, rows);
  }
}

template <Type type>
void multiply_panels(const Matrix& matrix, const Operand& x, float* y, int64_t y_stride, int64_t begin, int64_t end) {
  int64_t bytes = matrix.bytes_of_group();
  Panel panel = {matrix.data + begin / kLanes * bytes, matrix.blocks(), bytes, false};
  for (int64_t row = begin; row < end; row += kLanes, panel.start += bytes) {
    if (x.tokens == 1)
      tile<type, 1>(matrix, panel, x, 0, y + row, y_stride, matrix.rows - row);
    else
      all_tokens<type, kTokensPerTile>(matrix, panel, x, 0, y + row, y_stride, matrix.rows - row);
  }
}

}  // namespace
}  // namespace rookery::ROOKERY_LANES
