// Matrix kernels: one shape of loop for every number type (the layouts are described in matrix.h).
//
//     for each group of 16 rows, for each block of 32 columns:
//         for 64 bytes of weights:  for each token of the tile:  sum[token] += weights * x[token]
//         total[token] += sum[token] * scales
#pragma once

#include "lanes/functions.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

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

// What a number type does with one block of 32 columns of R groups of 16 rows, for N tokens.
template <Type>
struct Block;

template <>
struct Block<Type::fp32> {
  static constexpr int64_t kBytes = 4 * kBlock * kLanes;

  template <int R, int N>
  ROOKERY_INLINE static void add(Floats (&totals)[R][N], const uint8_t* const (&weights)[R],
                                 const uint16_t* const (&)[R], const InputBlock& x) {
    const float* values = reinterpret_cast<const float*>(x.values);
    ROOKERY_UNROLL for (int j = 0; j < kBlock; j++) {
      ROOKERY_UNROLL for (int r = 0; r < R; r++) {
        Floats w = load(reinterpret_cast<const float*>(weights[r]) + 16 * j);
        ROOKERY_UNROLL for (int n = 0; n < N; n++) {
          totals[r][n] = fma(w, broadcast(values[kBlock * n + j]), totals[r][n]);
        }
      }
    }
  }
};

template <>
struct Block<Type::bf16> {
  static constexpr int64_t kBytes = 2 * kBlock * kLanes;

  template <int R, int N>
  ROOKERY_INLINE static void add(Floats (&totals)[R][N], const uint8_t* const (&weights)[R],
                                 const uint16_t* const (&)[R], const InputBlock& x) {
    const uint16_t* values = reinterpret_cast<const uint16_t*>(x.values);
    ROOKERY_UNROLL for (int j = 0; j < kBlock / 2; j++) {
      ROOKERY_UNROLL for (int r = 0; r < R; r++) {
        Bytes w = load_bytes(weights[r] + 64 * j);
        ROOKERY_UNROLL for (int n = 0; n < N; n++) {
          totals[r][n] = dot_bf16(totals[r][n], w, values + kBlock * n + 2 * j);
        }
      }
    }
  }
};

template <int R, int N>
ROOKERY_INLINE void add_scaled(Floats (&totals)[R][N], const Ints (&sums)[R][N], const uint16_t* const (&scales)[R],
                               const float* x_scales) {
  ROOKERY_UNROLL for (int r = 0; r < R; r++) {
    Floats scale = load_f16(scales[r]);
    ROOKERY_UNROLL for (int n = 0; n < N; n++) {
      totals[r][n] = fma(to_floats(sums[r][n]), scale * broadcast(x_scales[n]), totals[r][n]);
    }
  }
}

template <>
struct Block<Type::q8> {
  static constexpr int64_t kBytes = kBlock * kLanes;

  template <int R, int N>
  ROOKERY_INLINE static void add(Floats (&totals)[R][N], const uint8_t* const (&weights)[R],
                                 const uint16_t* const (&scales)[R], const InputBlock& x) {
    const int8_t* values = reinterpret_cast<const int8_t*>(x.values);
    Ints sums[R][N];
    ROOKERY_UNROLL for (int n = 0; n < N; n++) {
      ROOKERY_UNROLL for (int r = 0; r < R; r++) { sums[r][n] = start_q8(x.corrections[n]); }
    }
    ROOKERY_UNROLL for (int j = 0; j < 8; j++) {
      ROOKERY_UNROLL for (int r = 0; r < R; r++) {
        Bytes w = load_bytes(weights[r] + 64 * j);
        ROOKERY_UNROLL for (int n = 0; n < N; n++) { sums[r][n] = dot_q8(sums[r][n], w, values + kBlock * n + 4 * j); }
      }
    }
    add_scaled(totals, sums, scales, x.scales);
  }
};

template <>
struct Block<Type::q4> {
  static constexpr int64_t kBytes = kBlock * kLanes / 2;

  template <int R, int N>
  ROOKERY_INLINE static void add(Floats (&totals)[R][N], const uint8_t* const (&weights)[R],
                                 const uint16_t* const (&scales)[R], const InputBlock& x) {
    const int8_t* values = reinterpret_cast<const int8_t*>(x.values);
    Ints sums[R][N];
    ROOKERY_UNROLL for (int n = 0; n < N; n++) {
      ROOKERY_UNROLL for (int r = 0; r < R; r++) { sums[r][n] = start_q4(x.corrections[n]); }
    }
    ROOKERY_UNROLL for (int j = 0; j < 4; j++) {
      ROOKERY_UNROLL for (int r = 0; r < R; r++) {
        Bytes both = load_bytes(weights[r] + 64 * j);
        Bytes low = low_nibbles(both), high = high_nibbles(both);
        ROOKERY_UNROLL for (int n = 0; n < N; n++) {
          sums[r][n] = dot_q4(sums[r][n], low, values + kBlock * n + 8 * j);
        }
        ROOKERY_UNROLL for (int n = 0; n < N; n++) {
          sums[r][n] = dot_q4(sums[r][n], high, values + kBlock * n + 8 * j + 4);
        }
      }
    }
    add_scaled(totals, sums, scales, x.scales);
  }
};

// Where a group of 16 rows lies.
struct Group {
  const uint16_t* scales;
  const uint8_t* weights;
};

// R groups of rows times N tokens.
template <Type type, int R, int N>
ROOKERY_INLINE void tile(const Group* groups, int64_t blocks, const Operand& x, int64_t token, float* y,
                         int64_t y_stride, int64_t rows) {
  const uint8_t* weights[R];
  const uint16_t* scales[R];
  Floats totals[R][N];
  ROOKERY_UNROLL for (int r = 0; r < R; r++) {
    weights[r] = groups[r].weights;
    scales[r] = groups[r].scales;
    ROOKERY_UNROLL for (int n = 0; n < N; n++) { totals[r][n] = zero(); }
  }
  InputBlock input = {x.values + token * kBlock * operand_value_bytes(type), x.scales + token, x.corrections + token};
  for (int64_t block = 0; block < blocks; block++) {
    Block<type>::add(totals, weights, scales, input);
    ROOKERY_UNROLL for (int r = 0; r < R; r++) {
      weights[r] += Block<type>::kBytes;
      scales[r] += kLanes;
    }
    input.values += x.tokens * kBlock * operand_value_bytes(type);
    input.scales += x.tokens;
    input.corrections += x.tokens;
  }
  ROOKERY_UNROLL for (int n = 0; n < N; n++) {
    ROOKERY_UNROLL for (int r = 0; r < R; r++) {
      int64_t left = rows - 16 * r;
      float* target = y + (token + n) * y_stride + 16 * r;
      if (left >= 16)
        store(target, totals[r][n]);
      else if (left > 0)
        store(target, totals[r][n], static_cast<int>(left));
    }
  }
}

// One group of rows times all tokens, in tiles of N tokens, then of fewer.
template <Type type, int N>
void all_tokens(const Group* group, int64_t blocks, const Operand& x, int64_t token, float* y, int64_t y_stride,
                int64_t rows) {
  for (; token + N <= x.tokens; token += N) tile<type, 1, N>(group, blocks, x, token, y, y_stride, rows);
  if constexpr (N > 1) {
    constexpr int kFewer = N > 8 ? 8 : N > 4 ? 4 : N > 2 ? 2 : 1;
    if (token < x.tokens) all_tokens<type, kFewer>(group, blocks, x, token, y, y_stride, rows);
  }
}

// `count` groups that start at `row`.
template <Type type>
void multiply_groups(const Group* groups, int64_t count, int64_t row, const Matrix& matrix, const Operand& x, float* y,
                     int64_t y_stride) {
  int64_t blocks = matrix.blocks(), g = 0;
  if (x.tokens == 1)
    for (; g + kGroupsPerTile <= count; g += kGroupsPerTile)
      tile<type, kGroupsPerTile, 1>(groups + g, blocks, x, 0, y + row + 16 * g, y_stride, matrix.rows - row - 16 * g);
  for (; g < count; g++)
    all_tokens<type, kTokensPerTile>(groups + g, blocks, x, 0, y + row + 16 * g, y_stride, matrix.rows - row - 16 * g);
}

template <Type type>
void multiply_panels(const Matrix& matrix, const Operand& x, float* y, int64_t y_stride, int64_t begin, int64_t end) {
  Group groups[kGroupsPerTile];
  for (int64_t row = begin; row < end;) {
    int64_t count = (end - row + kLanes - 1) / kLanes;
    if (count > kGroupsPerTile) count = kGroupsPerTile;
    for (int64_t g = 0; g < count; g++) {
      const uint8_t* start = matrix.data + (row / kLanes + g) * matrix.bytes_of_group();
      groups[g] = {reinterpret_cast<const uint16_t*>(start), start + matrix.scale_bytes_of_group()};
    }
    multiply_groups<type>(groups, count, row, matrix, x, y, y_stride);
    row += count * kLanes;
  }
}

// --- Layout columns, one token: skipping what is multiplied by zero. ---

constexpr int kSkippingGroups = 4;  // rows that are summed up at a time, in groups: 64 bytes of q8 from each column

// The weights of 64 rows of one column as floats, without their scale. (In q4 16 bytes hold 32 rows.)
template <Type type>
ROOKERY_INLINE void read_column(const uint8_t* weights, Floats (&w)[kSkippingGroups]) {
  for (int g = 0; g < kSkippingGroups; g++) {
    if constexpr (type == Type::fp32) w[g] = load(reinterpret_cast<const float*>(weights) + 16 * g);
    if constexpr (type == Type::bf16) w[g] = load_bf16(reinterpret_cast<const uint16_t*>(weights) + 16 * g);
    if constexpr (type == Type::q8) w[g] = load_u8(weights + 16 * g);
    if constexpr (type == Type::q4)
      if (g % 2 == 0) load_nibbles(weights + 8 * g, w[g], w[g + 1]);
  }
}

ROOKERY_INLINE float widened(uint16_t half) {
  uint32_t bits = static_cast<uint32_t>(half) << 16;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}

template <Type type>
ROOKERY_INLINE float value_of(const uint8_t* values, int64_t column) {
  if constexpr (type == Type::fp32) return reinterpret_cast<const float*>(values)[column];
  if constexpr (type == Type::bf16) return widened(reinterpret_cast<const uint16_t*>(values)[column]);
  return static_cast<float>(reinterpret_cast<const int8_t*>(values)[column]);
}

struct Present {
  float value;
  int32_t column;
};

// The columns that are not zero, and where those of each block begin. NaN is not zero.
template <Type type>
void find_present(const Operand& x, int64_t blocks, Present* present, int32_t* starts) {
  int32_t count = 0;
  for (int64_t block = 0; block < blocks; block++) {
    starts[block] = count;
    for (int64_t column = block * kBlock; column < (block + 1) * kBlock; column++) {
      float value = value_of<type>(x.values, column);
      present[count] = {value, static_cast<int32_t>(column)};
      count += value != 0 ? 1 : 0;
    }
  }
  starts[blocks] = count;
}

template <Type type>
void multiply_skipping(const Matrix& matrix, const Operand& x, float* y, int64_t begin, int64_t end, void* scratch) {
  constexpr bool kScaled = type == Type::q8 || type == Type::q4;
  constexpr int kAhead = 8;  // columns: their rows lie far apart, and no prefetcher guesses which come
  int64_t blocks = matrix.blocks(), stride = matrix.bytes_of_column(), rows = matrix.padded_rows();
  Present* present = static_cast<Present*>(scratch);
  int32_t* starts = reinterpret_cast<int32_t*>(present + blocks * kBlock + 1);
  find_present<type>(x, blocks, present, starts);
  int32_t last = starts[blocks] - 1;
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(matrix.data);
  const uint8_t* weights = matrix.data + matrix.scale_bytes();
  for (int64_t row = begin; row < end; row += kSkippingGroups * kLanes) {
    const uint8_t* from = weights + row * matrix.block_bytes() / kBlock;
    Floats totals[kSkippingGroups];
    for (int g = 0; g < kSkippingGroups; g++) totals[g] = zero();
    for (int64_t block = 0; block < blocks; block++) {
      if (starts[block] == starts[block + 1]) continue;
      Floats sums[kSkippingGroups];
      for (int g = 0; g < kSkippingGroups; g++)
        sums[g] = kScaled ? broadcast(static_cast<float>(x.corrections[block])) : totals[g];
      for (int32_t i = starts[block]; i < starts[block + 1]; i++) {
        const Present& ahead = present[i + kAhead < last ? i + kAhead : last];
        __builtin_prefetch(from + ahead.column * stride);
        if constexpr (type == Type::fp32 || type == Type::bf16)
          for (int64_t line = 64; line < kSkippingGroups * kLanes * matrix.block_bytes() / kBlock; line += 64)
            __builtin_prefetch(from + ahead.column * stride + line);
        Floats w[kSkippingGroups], value = broadcast(present[i].value);
        read_column<type>(from + present[i].column * stride, w);
        for (int g = 0; g < kSkippingGroups; g++) sums[g] = fma(w[g], value, sums[g]);
      }
      for (int g = 0; g < kSkippingGroups; g++)
        totals[g] = kScaled ? fma(sums[g], load_f16(scales + block * rows + row + 16 * g) * broadcast(x.scales[block]),
                                  totals[g])
                            : sums[g];
    }
    for (int g = 0; g < kSkippingGroups; g++) {
      int64_t left = matrix.rows - row - 16 * g;
      if (left >= 16)
        store(y + row + 16 * g, totals[g]);
      else if (left > 0)
        store(y + row + 16 * g, totals[g], static_cast<int>(left));
    }
  }
}

// --- Layout columns, several tokens: panels of 64 rows, made in cache. ---

// 16 rows of four columns, from 16 bytes of each, to 64 bytes: row by row, four columns each.
ROOKERY_INLINE void interleave_bytes(const uint8_t* const (&columns)[4], uint8_t* out) {
#if defined(__SSE2__)
  __m128i c[4];
  for (int i = 0; i < 4; i++) c[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(columns[i]));
  __m128i low01 = _mm_unpacklo_epi8(c[0], c[1]), high01 = _mm_unpackhi_epi8(c[0], c[1]);
  __m128i low23 = _mm_unpacklo_epi8(c[2], c[3]), high23 = _mm_unpackhi_epi8(c[2], c[3]);
  __m128i* to = reinterpret_cast<__m128i*>(out);
  _mm_storeu_si128(to, _mm_unpacklo_epi16(low01, low23));
  _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(low01, low23));
  _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(high01, high23));
  _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(high01, high23));
#else
  for (int row = 0; row < 16; row++)
    for (int i = 0; i < 4; i++) out[4 * row + i] = columns[i][row];
#endif
}

template <Type type>
void make_panels(const Matrix& matrix, int64_t row, uint8_t* memory, Group (&groups)[4]) {
  int64_t blocks = matrix.blocks(), stride = matrix.bytes_of_column(), all_rows = matrix.padded_rows();
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(matrix.data);
  const uint8_t* from = matrix.data + matrix.scale_bytes() + row * matrix.block_bytes() / kBlock;
  for (int g = 0; g < 4; g++) {
    uint8_t* start = memory + g * matrix.bytes_of_group();
    uint16_t* own_scales = reinterpret_cast<uint16_t*>(start);
    uint8_t* to = start + matrix.scale_bytes_of_group();
    groups[g] = {own_scales, to};
    if (matrix.has_scales())
      for (int64_t block = 0; block < blocks; block++)
        __builtin_memcpy(own_scales + 16 * block, scales + block * all_rows + row + 16 * g, 32);
    for (int64_t column = 0; column < blocks * kBlock;) {
      const uint8_t* c = from + column * stride;
      if constexpr (type == Type::fp32) {
        __builtin_memcpy(to, c + 64 * g, 64);
        column += 1;
      } else if constexpr (type == Type::bf16) {
        const uint16_t* even = reinterpret_cast<const uint16_t*>(c) + 16 * g;
        const uint16_t* odd = reinterpret_cast<const uint16_t*>(c + stride) + 16 * g;
        uint16_t* pairs = reinterpret_cast<uint16_t*>(to);
        for (int i = 0; i < 16; i++) {
          pairs[2 * i] = even[i];
          pairs[2 * i + 1] = odd[i];
        }
        column += 2;
      } else if constexpr (type == Type::q8) {
        const uint8_t* four[4] = {c + 16 * g, c + stride + 16 * g, c + 2 * stride + 16 * g, c + 3 * stride + 16 * g};
        interleave_bytes(four, to);
        column += 4;
      } else {
        // 16 bytes of a column hold 32 rows: this group is in their lower or upper halves.
        uint8_t bytes[2][64];
        const uint8_t* at = c + 16 * (g / 2);
        const uint8_t* first[4] = {at, at + stride, at + 2 * stride, at + 3 * stride};
        const uint8_t* second[4] = {at + 4 * stride, at + 5 * stride, at + 6 * stride, at + 7 * stride};
        interleave_bytes(first, bytes[0]);
        interleave_bytes(second, bytes[1]);
        for (int i = 0; i < 64; i++)
          to[i] = g % 2 == 0 ? static_cast<uint8_t>((bytes[0][i] & 15) | (bytes[1][i] << 4))
                             : static_cast<uint8_t>((bytes[0][i] >> 4) | (bytes[1][i] & 0xf0));
        column += 8;
      }
      to += 64;
    }
  }
}

template <Type type>
void multiply_columns(const Matrix& matrix, const Operand& x, float* y, int64_t y_stride, int64_t begin, int64_t end,
                      void* scratch) {
  if (x.tokens == 1) return multiply_skipping<type>(matrix, x, y, begin, end, scratch);
  for (int64_t row = begin; row < end; row += 4 * kLanes) {
    Group groups[4];
    make_panels<type>(matrix, row, static_cast<uint8_t*>(scratch), groups);
    for (int64_t g = 0; g < 4 && row + 16 * g < matrix.rows; g++)
      multiply_groups<type>(groups + g, 1, row + 16 * g, matrix, x, y, y_stride);
  }
}

template <Type type>
void multiply_type(const Matrix& matrix, const Operand& x, float* y, int64_t y_stride, int64_t begin, int64_t end,
                   void* scratch) {
  if (matrix.layout == Layout::panels)
    multiply_panels<type>(matrix, x, y, y_stride, begin, end);
  else
    multiply_columns<type>(matrix, x, y, y_stride, begin, end, scratch);
}

void multiply_any(const Matrix& matrix, const Operand& x, float* y, int64_t y_stride, int64_t begin, int64_t end,
                  void* scratch) {
  switch (matrix.type) {
    case Type::fp32:
      return multiply_type<Type::fp32>(matrix, x, y, y_stride, begin, end, scratch);
    case Type::bf16:
      return multiply_type<Type::bf16>(matrix, x, y, y_stride, begin, end, scratch);
    case Type::q8:
      return multiply_type<Type::q8>(matrix, x, y, y_stride, begin, end, scratch);
    case Type::q4:
      return multiply_type<Type::q4>(matrix, x, y, y_stride, begin, end, scratch);
  }
}

// --- Converting inputs. ---

// 16 of n numbers, and zeros after them.
ROOKERY_INLINE Floats load_padded(const float* x, int64_t n) {
  return n >= 16 ? load(x) : n > 0 ? load(x, static_cast<int>(n)) : zero();
}

void convert_floats(const float* x, int64_t columns, int64_t tokens, float* values) {
  for (int64_t column = 0; column < columns; column += kBlock, values += tokens * kBlock)
    for (int h = 0; h < 2; h++) store(values + 16 * h, load_padded(x + column + 16 * h, columns - column - 16 * h));
}

void convert_bf16(const float* x, int64_t columns, int64_t tokens, uint16_t* values) {
  for (int64_t column = 0; column < columns; column += kBlock, values += tokens * kBlock)
    for (int h = 0; h < 2; h++)
      store_bf16(values + 16 * h, load_padded(x + column + 16 * h, columns - column - 16 * h));
}

void convert_integers(const float* x, int64_t columns, int64_t tokens, int32_t offset, int8_t* values, float* scales,
                      int32_t* corrections) {
  for (int64_t column = 0; column < columns; column += kBlock) {
    Floats halves[2];
    for (int h = 0; h < 2; h++) halves[h] = load_padded(x + column + 16 * h, columns - column - 16 * h);
    float largest = maximum(max(abs(halves[0]), abs(halves[1])));
    // A block whose largest number is tiny counts as zero: 1 / scale must not overflow.
    float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
    *scales = largest > 1e-30f ? largest / 127.0f : 0.0f;
    Floats rounded[2] = {round(halves[0] * broadcast(inverse)), round(halves[1] * broadcast(inverse))};
    store_s8(values, rounded[0]);
    store_s8(values + 16, rounded[1]);
    *corrections = -offset * static_cast<int32_t>(sum(rounded[0] + rounded[1]));
    values += tokens * kBlock;
    scales += tokens;
    corrections += tokens;
  }
}

constexpr MatrixKernels matrix_kernels() { return {convert_floats, convert_bf16, convert_integers, multiply_any}; }

}  // namespace
}  // namespace rookery::ROOKERY_LANES
