// Products of all number types and layouts, and the conversion of their inputs: the table of matrix kernels.
#pragma once

#include "kernels/columns.h"
#include "kernels/panels.h"

namespace rookery::ROOKERY_LANES {
namespace {

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
    float scale = largest > 1e-30f ? largest / 127.0f : 0.0f;
    Floats rounded[2] = {round(halves[0] * broadcast(inverse)), round(halves[1] * broadcast(inverse))};
    float total = sum(rounded[0] + rounded[1]);
    if (total != total) {
      // NaN or infinity has no integer: ones, none of which is skipped, and their scale is NaN.
      rounded[0] = rounded[1] = broadcast(1.0f);
      scale = total;
      total = kBlock;
    }
    store_s8(values, rounded[0]);
    store_s8(values + 16, rounded[1]);
    *scales = scale;
    *corrections = -offset * static_cast<int32_t>(total);
    values += tokens * kBlock;
    scales += tokens;
    corrections += tokens;
  }
}

constexpr MatrixKernels matrix_kernels() { return {convert_floats, convert_bf16, convert_integers, multiply_any}; }

}  // namespace
}  // namespace rookery::ROOKERY_LANES
