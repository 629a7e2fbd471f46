// Products of matrices in layout `columns` (matrix.h).
#pragma once

#include "kernels/panels.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace rookery::ROOKERY_LANES {
namespace {

// --- Layout columns, one token: skipping what is multiplied by zero. No prefetcher guesses which columns come. ---

constexpr int kSlabGroups = kSlab / kLanes;

// Rows of 16 G outputs, of which the first `rows` are the matrix's.
template <int G>
ROOKERY_INLINE void load_rows(Floats (&totals)[G], int64_t rows, const float* y) {
  if (rows >= 16 * G) {
    ROOKERY_UNROLL for (int g = 0; g < G; g++) { totals[g] = load(y + 16 * g); }
    return;
  }
  ROOKERY_UNROLL for (int g = 0; g < G; g++) {
    int64_t left = rows - 16 * g;
    totals[g] = left > 0 ? load(y + 16 * g, static_cast<int>(left < 16 ? left : 16)) : zero();
  }
}

template <int G>
ROOKERY_INLINE void store_rows(const Floats (&totals)[G], int64_t rows, float* y) {
  if (rows >= 16 * G) {
    ROOKERY_UNROLL for (int g = 0; g < G; g++) { store(y + 16 * g, totals[g]); }
    return;
  }
  ROOKERY_UNROLL for (int g = 0; g < G; g++) {
    int64_t left = rows - 16 * g;
    if (left > 0) store(y + 16 * g, totals[g], static_cast<int>(left < 16 ? left : 16));
  }
}

// Into the second cache: into the first, fewer are under way at a time, and a third of the bandwidth is lost.
ROOKERY_INLINE void prefetch_column(const Matrix& matrix, const uint8_t* column) {
  for (int64_t byte = 0; byte < matrix.column_bytes(); byte += 64) __builtin_prefetch(column + byte, 0, 2);
}

ROOKERY_INLINE float value_of(const uint8_t* values, int64_t column, Type type) {
  if (type == Type::fp32) return reinterpret_cast<const float*>(values)[column];
  uint32_t bits = static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(values)[column]) << 16;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}

// A column that is not zero, and where its weights are in a slab.
struct Present {
  float value;
  uint32_t place;  // in units of 64 bytes
};

// Lists them; returns how many there are. NaN is not zero.
int32_t find_present(const Matrix& matrix, const Operand& x, Present* present) {
  int32_t count = 0;
  for (int64_t column = 0; column < matrix.blocks() * kBlock; column++) {
    float value = value_of(x.values, column, matrix.type);
    present[count] = {value, static_cast<uint32_t>(column * matrix.column_bytes() / 64)};
    count += value != 0 ? 1 : 0;
  }
  return count;
}

template <Type type>
void skip_floats(const Matrix& matrix, const Operand& x, float* y, int64_t begin, int64_t end, void* scratch) {
  constexpr int kAhead = 48;  // columns
  Present* present = static_cast<Present*>(scratch);
  int32_t count = find_present(matrix, x, present);
  for (int64_t row = begin; row < end; row += kSlab) {
    const uint8_t* slab = matrix.data + row / kSlab * matrix.bytes_of_slab();
    Floats totals[kSlabGroups];
    ROOKERY_UNROLL for (int g = 0; g < kSlabGroups; g++) { totals[g] = zero(); }
    for (int32_t i = 0; i < count; i++) {
      prefetch_column(matrix, slab + int64_t{64} * present[i + kAhead < count ? i + kAhead : i].place);
      const uint8_t* weights = slab + int64_t{64} * present[i].place;
      Floats value = broadcast(present[i].value);
      ROOKERY_UNROLL for (int g = 0; g < kSlabGroups; g++) {
        Floats w = type == Type::fp32 ? load(reinterpret_cast<const float*>(weights) + 16 * g)
                                      : load_bf16(reinterpret_cast<const uint16_t*>(weights) + 16 * g);
        totals[g] = fma(w, value, totals[g]);
      }
    }
    store_rows(totals, matrix.rows - row, y + row);
  }
}

// Four columns of a block that are not zero (at its end, some again, times zero), and where they are in a slab.
struct Four {
  int8_t values[4];
  uint32_t places[4];  // in units of 64 bytes
};

// Lists them, and where those of each block begin. Returns how many there are.
int32_t find_fours(const Matrix& matrix, const Operand& x, Four* fours, int32_t* starts) {
  int32_t count = 0;
  for (int64_t block = 0; block < matrix.blocks(); block++) {
    starts[block] = count;
    int64_t place = (block * matrix.slab_block_bytes() + matrix.slab_scale_bytes()) / 64;
    int members = 0;
    for (int64_t eight = 0; eight < kBlock; eight += 8) {
      uint64_t bytes, low = 0x7f7f7f7f7f7f7f7f;
      __builtin_memcpy(&bytes, x.values + block * kBlock + eight, 8);
      // The top bit of each byte that is not zero.
      for (uint64_t left = (((bytes & low) + low) | bytes) & ~low; left != 0; left &= left - 1) {
        int64_t column = eight + __builtin_ctzll(left) / 8;
        Four& four = fours[count];
        four.values[members] = static_cast<int8_t>(x.values[block * kBlock + column]);
        four.places[members] = static_cast<uint32_t>(place + column * matrix.column_bytes() / 64);
        members = (members + 1) % 4;
        count += members == 0 ? 1 : 0;
      }
    }
    if (members == 0) continue;
    for (; members < 4; members++) {
      fours[count].values[members] = 0;
      fours[count].places[members] = fours[count].places[0];
    }
    count++;
  }
  starts[matrix.blocks()] = count;
  return count;
}

// Adds four columns of 64 rows.
template <Type type>
ROOKERY_INLINE void add_columns(Ints (&sums)[4], Bytes a, Bytes b, Bytes c, Bytes d, const int8_t* values) {
  Bytes rows[4] = {a, b, c, d};
  interleave(rows);
  ROOKERY_UNROLL for (int i = 0; i < 4; i++) {
    sums[i] = type == Type::q8 ? dot_q8(sums[i], rows[i], values) : dot_q4(sums[i], rows[i], values);
  }
}

template <Type type>
void skip_integers(const Matrix& matrix, const Operand& x, float* y, int64_t begin, int64_t end, void* scratch) {
  constexpr int kAhead = 16;  // fours
  constexpr bool k8 = type == Type::q8;
  int64_t blocks = matrix.blocks();
  Four* fours = static_cast<Four*>(scratch);
  int32_t* starts = reinterpret_cast<int32_t*>(fours + blocks * kBlock / 4 + 1);
  int32_t count = find_fours(matrix, x, fours, starts);
  for (int64_t row = begin; row < end; row += kSlab) {
    const uint8_t* slab = matrix.data + row / kSlab * matrix.bytes_of_slab();
    Floats totals[kSlabGroups];
    ROOKERY_UNROLL for (int g = 0; g < kSlabGroups; g++) { totals[g] = zero(); }
    for (int64_t block = 0; block < blocks; block++) {
      if (starts[block] == starts[block + 1]) continue;
      // q8: rows 0 to 63 and 64 to 127. q4: of every 32 rows the first 16, and the others.
      Ints sums[2][4];
      ROOKERY_UNROLL for (int i = 0; i < 4; i++) {
        sums[0][i] = sums[1][i] = k8 ? start_q8(x.corrections[block]) : start_q4(x.corrections[block]);
      }
      for (int32_t i = starts[block]; i < starts[block + 1]; i++) {
        const Four& ahead = fours[i + kAhead < count ? i + kAhead : i];
        const uint8_t* w[4];
        ROOKERY_UNROLL for (int c = 0; c < 4; c++) {
          prefetch_column(matrix, slab + int64_t{64} * ahead.places[c]);
          w[c] = slab + int64_t{64} * fours[i].places[c];
        }
        Bytes b[4] = {load_bytes(w[0]), load_bytes(w[1]), load_bytes(w[2]), load_bytes(w[3])};
        const int8_t* values = fours[i].values;
        if constexpr (k8) {
          add_columns<type>(sums[0], b[0], b[1], b[2], b[3], values);
          add_columns<type>(sums[1], load_bytes(w[0] + 64), load_bytes(w[1] + 64), load_bytes(w[2] + 64),
                            load_bytes(w[3] + 64), values);
        } else {
          add_columns<type>(sums[0], low_nibbles(b[0]), low_nibbles(b[1]), low_nibbles(b[2]), low_nibbles(b[3]),
                            values);
          add_columns<type>(sums[1], high_nibbles(b[0]), high_nibbles(b[1]), high_nibbles(b[2]), high_nibbles(b[3]),
                            values);
        }
      }
      restore_order(sums[0]);
      restore_order(sums[1]);
      const uint16_t* scales = reinterpret_cast<const uint16_t*>(slab + block * matrix.slab_block_bytes());
      ROOKERY_UNROLL for (int g = 0; g < kSlabGroups; g++) {
        Floats scale = load_f16(scales + 16 * g) * broadcast(x.scales[block]);
        totals[g] = fma(to_floats(k8 ? sums[g / 4][g % 4] : sums[g % 2][g / 2]), scale, totals[g]);
      }
    }
    store_rows(totals, matrix.rows - row, y + row);
  }
}

template <Type type>
void multiply_skipping(const Matrix& matrix, const Operand& x, float* y, int64_t begin, int64_t end, void* scratch) {
  if constexpr (type == Type::fp32 || type == Type::bf16)
    skip_floats<type>(matrix, x, y, begin, end, scratch);
  else
    skip_integers<type>(matrix, x, y, begin, end, scratch);
}

// --- Layout columns of fp32, several tokens: each skips what is zero for it. ---
//
// A block of columns of a slab (16 KB) stays in the first cache while all tokens add their columns of it to y, 8
// registers of it at a time. A column that is read from that cache takes as long as a product of a dense tile, so
// that nothing is lost where no number is zero.

constexpr int kPresentGroups = kTokensPerTile >= 12 ? kSlabGroups : kSlabGroups / 2;

// Adds the columns whose bits are set to 16 kPresentGroups rows, of which the first `rows` are the matrix's.
ROOKERY_INLINE void add_present(const uint8_t* weights, int64_t column_bytes, uint32_t present, const float* values,
                                bool adds, float* y, int64_t rows) {
  Floats totals[kPresentGroups];
  if (adds) {
    load_rows(totals, rows, y);
  } else {
    ROOKERY_UNROLL for (int g = 0; g < kPresentGroups; g++) { totals[g] = zero(); }
  }
  for (; present != 0; present &= present - 1) {
    int column = __builtin_ctz(present);
    const float* w = reinterpret_cast<const float*>(weights + column * column_bytes);
    Floats value = broadcast(values[column]);
    ROOKERY_UNROLL for (int g = 0; g < kPresentGroups; g++) { totals[g] = fma(load(w + 16 * g), value, totals[g]); }
  }
  store_rows(totals, rows, y);
}

void multiply_present(const Matrix& matrix, const Operand& x, float* y, int64_t y_stride, int64_t begin, int64_t end) {
  constexpr int64_t kRows = kPresentGroups * kLanes;
  for (int64_t row = begin; row < end; row += kSlab) {
    const uint8_t* slab = matrix.data + row / kSlab * matrix.bytes_of_slab();
    for (int64_t block = 0; block < matrix.blocks(); block++) {
      const uint8_t* weights = slab + block * matrix.slab_block_bytes();
      const float* values = reinterpret_cast<const float*>(x.values) + block * x.tokens * kBlock;
      for (int64_t token = 0; token < x.tokens; token++, values += kBlock) {
        // Meanwhile the next block is brought in.
        int64_t bytes = matrix.slab_block_bytes();
        for (int64_t byte = token * bytes / x.tokens / 64 * 64; byte < (token + 1) * bytes / x.tokens; byte += 64)
          __builtin_prefetch(weights + bytes + byte, 0, 2);
        uint32_t present = nonzero(load(values)) | nonzero(load(values + 16)) << 16;
        for (int64_t part = 0; part < kSlab && row + part < matrix.rows; part += kRows)
          add_present(weights + 4 * part, matrix.column_bytes(), present, values, block > 0,
                      y + token * y_stride + row + part, matrix.rows - row - part);
      }
    }
  }
}

// --- Layout columns of other types, several tokens: panels of a slab, made in cache. ---

// 16 rows of four columns, from 16 bytes of each, to 64 bytes: row by row, four columns each.
ROOKERY_INLINE void interleave_bytes(const uint8_t* columns, int64_t stride, uint8_t* out) {
#if defined(__SSE2__)
  __m128i c[4];
  for (int i = 0; i < 4; i++) c[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(columns + i * stride));
  __m128i low01 = _mm_unpacklo_epi8(c[0], c[1]), high01 = _mm_unpackhi_epi8(c[0], c[1]);
  __m128i low23 = _mm_unpacklo_epi8(c[2], c[3]), high23 = _mm_unpackhi_epi8(c[2], c[3]);
  __m128i* to = reinterpret_cast<__m128i*>(out);
  _mm_storeu_si128(to, _mm_unpacklo_epi16(low01, low23));
  _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(low01, low23));
  _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(high01, high23));
  _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(high01, high23));
#else
  for (int row = 0; row < 16; row++)
    for (int i = 0; i < 4; i++) out[4 * row + i] = columns[i * stride + row];
#endif
}

// 16 rows of two columns of 16 bits: row by row, two columns each.
ROOKERY_INLINE void interleave_pairs(const uint8_t* even, const uint8_t* odd, uint8_t* out) {
#if defined(__SSE2__)
  __m128i* to = reinterpret_cast<__m128i*>(out);
  for (int half = 0; half < 2; half++) {
    __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(even) + half);
    __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(odd) + half);
    _mm_storeu_si128(to + 2 * half, _mm_unpacklo_epi16(a, b));
    _mm_storeu_si128(to + 2 * half + 1, _mm_unpackhi_epi16(a, b));
  }
#else
  for (int row = 0; row < 16; row++) {
    __builtin_memcpy(out + 4 * row, even + 2 * row, 2);
    __builtin_memcpy(out + 4 * row + 2, odd + 2 * row, 2);
  }
#endif
}

// The lower four bits of 64 bytes, or the upper, of one in the lower and of the other in the upper halves.
ROOKERY_INLINE void join_nibbles(const uint8_t (&bytes)[2][64], bool upper, uint8_t* to) {
#if defined(__SSE2__)
  __m128i low = _mm_set1_epi8(15);
  for (int i = 0; i < 64; i += 16) {
    __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes[0] + i));
    __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes[1] + i));
    first = _mm_and_si128(upper ? _mm_srli_epi16(first, 4) : first, low);
    second = upper ? _mm_andnot_si128(low, second) : _mm_slli_epi16(_mm_and_si128(second, low), 4);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm_or_si128(first, second));
  }
#else
  for (int i = 0; i < 64; i++) {
    int first = upper ? bytes[0][i] >> 4 : bytes[0][i] & 15;
    int second = upper ? bytes[1][i] & 0xf0 : bytes[1][i] << 4;
    to[i] = static_cast<uint8_t>(first | second);
  }
#endif
}

// How many columns of 16 rows fill 64 bytes of a panel.
template <Type type>
constexpr int64_t kColumnsOfLine = type == Type::bf16 ? 2
                                   : type == Type::q8 ? 4
                                                      : 8;

// 64 bytes of a panel, from the columns at `columns` and the rows of group `g` of a slab.
template <Type type>
ROOKERY_INLINE void make_line(const uint8_t* columns, int64_t stride, int64_t g, uint8_t* to) {
  if constexpr (type == Type::bf16) interleave_pairs(columns + 32 * g, columns + stride + 32 * g, to);
  if constexpr (type == Type::q8) interleave_bytes(columns + 16 * g, stride, to);
  if constexpr (type == Type::q4) {
    uint8_t bytes[2][64];
    for (int half = 0; half < 2; half++)
      interleave_bytes(columns + 4 * half * stride + 16 * (g / 2), stride, bytes[half]);
    join_nibbles(bytes, g % 2 != 0, to);
  }
}

// Panels of a slab's blocks from `first` on.
template <Type type>
void make_panels(const Matrix& matrix, const uint8_t* slab, int64_t first, int64_t blocks, uint8_t* panels,
                 int64_t panel_bytes) {
  int64_t stride = matrix.column_bytes();
  for (int64_t block = 0; block < blocks; block++) {
    const uint8_t* from = slab + (first + block) * matrix.slab_block_bytes();
    if (matrix.has_scales())
      for (int64_t g = 0; g < kSlabGroups; g++)
        __builtin_memcpy(panels + g * panel_bytes + matrix.scales_at(block), from + 32 * g, 32);
    from += matrix.slab_scale_bytes();
    // All groups of some columns, then the next columns: so that the slab is read from front to back.
    uint8_t* to = panels + matrix.weights_at(block);
    for (int64_t j = 0; j < kBlock; j += kColumnsOfLine<type>, from += kColumnsOfLine<type> * stride, to += 64) {
      // What comes after the products of these panels is brought in meanwhile.
      for (int64_t byte = 0; byte < kColumnsOfLine<type> * stride; byte += 64)
        __builtin_prefetch(from + kBlocksMade * matrix.slab_block_bytes() + byte, 0, 2);
      for (int64_t g = 0; g < kSlabGroups; g++) make_line<type>(from, stride, g, to + g * panel_bytes);
    }
  }
}

template <Type type>
void multiply_by_panels(const Matrix& matrix, const Operand& x, float* y, int64_t y_stride, int64_t begin, int64_t end,
                        void* scratch) {
  uint8_t* panels = static_cast<uint8_t*>(scratch);
  int64_t panel_bytes = matrix.weights_at(kBlocksMade);
  for (int64_t row = begin; row < end; row += kSlab) {
    const uint8_t* slab = matrix.data + row / kSlab * matrix.bytes_of_slab();
    for (int64_t first = 0; first < matrix.blocks(); first += kBlocksMade) {
      int64_t blocks = matrix.blocks() - first < kBlocksMade ? matrix.blocks() - first : kBlocksMade;
      make_panels<type>(matrix, slab, first, blocks, panels, panel_bytes);
      Operand part = {x.values + first * x.tokens * kBlock * operand_value_bytes(type), x.scales + first * x.tokens,
                      x.corrections + first * x.tokens, x.tokens};
      for (int64_t g = 0; g < kSlabGroups && row + 16 * g < matrix.rows; g++) {
        Panel panel = {panels + g * panel_bytes, blocks, 0, first > 0};
        all_tokens<type, kTokensPerTile>(matrix, panel, part, 0, y + row + 16 * g, y_stride,
                                         matrix.rows - row - 16 * g);
      }
    }
  }
}

template <Type type>
void multiply_columns(const Matrix& matrix, const Operand& x, float* y, int64_t y_stride, int64_t begin, int64_t end,
                      void* scratch) {
  if (x.tokens == 1)
    multiply_skipping<type>(matrix, x, y, begin, end, scratch);
  else if constexpr (type == Type::fp32)
    multiply_present(matrix, x, y, y_stride, begin, end);
  else
    multiply_by_panels<type>(matrix, x, y, y_stride, begin, end, scratch);
}

}  // namespace
}  // namespace rookery::ROOKERY_LANES
