#include "matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "numbers.h"
#include "quantize.h"

namespace rookery {
namespace {

int64_t aligned(int64_t bytes) { return padded(bytes, 64); }

int32_t offset_of(Type type) { return type == Type::q8 ? 128 : 8; }

// 32 weights of one row as the integers u that are stored, and their scale.
struct IntegerBlock {
  uint16_t scale;
  uint8_t values[kBlock];
};

IntegerBlock from_q8_0(const uint8_t* block) {
  IntegerBlock result;
  std::memcpy(&result.scale, block, 2);
  for (int i = 0; i < kBlock; i++) result.values[i] = static_cast<uint8_t>(block[2 + i] ^ 0x80);
  return result;
}

IntegerBlock from_q4_0(const uint8_t* block) {
  IntegerBlock result;
  std::memcpy(&result.scale, block, 2);
  for (int i = 0; i < 16; i++) {
    result.values[i] = block[2 + i] & 15;
    result.values[16 + i] = block[2 + i] >> 4;
  }
  return result;
}

// Weights of zero, of whatever type.
IntegerBlock no_block(Type type) {
  IntegerBlock result;
  result.scale = 0;
  std::memset(result.values, offset_of(type), kBlock);
  return result;
}

// Block `block` of a row, padded with zeros.
IntegerBlock integer_block(Type type, const Source& source, int64_t row, int64_t block, const float* floats) {
  const uint8_t* raw = source.data + row * source.row_bytes;
  if (type == Type::q8 && source.type == SourceType::q8_0) return from_q8_0(raw + block * kQ8Bytes);
  if (type == Type::q4 && source.type == SourceType::q4_0) return from_q4_0(raw + block * kQ4Bytes);
  uint8_t encoded[kQ8Bytes];
  if (type == Type::q8) {
    quantize_q8_0(floats + block * kBlock, kBlock, encoded);
    return from_q8_0(encoded);
  }
  quantize_q4_0(floats + block * kBlock, kBlock, encoded);
  return from_q4_0(encoded);
}

bool is_exact(Type type, SourceType source) {
  return (type == Type::q8 && source == SourceType::q8_0) || (type == Type::q4 && source == SourceType::q4_0);
}

// Where 16 rows of a block lie in a matrix: from `weights` and `scales`, row i of column j.
struct Place {
  uint8_t* weights;
  uint8_t* scales;
  int64_t row;  // of the slab, in layout columns
};

Place place_of(const Matrix& matrix, uint8_t* memory, int64_t row, int64_t block) {
  if (matrix.layout == Layout::panels) {
    uint8_t* group = memory + row / kLanes * matrix.bytes_of_group();
    return {group + matrix.weights_at(block), group + matrix.scales_at(block), 0};
  }
  uint8_t* start = memory + row / kSlab * matrix.bytes_of_slab() + block * matrix.slab_block_bytes();
  return {start + matrix.slab_scale_bytes(), start + row % kSlab * 2, row % kSlab};
}

// Integers of 16 rows, [row], to where the kernels read them.
void store_integers(const Matrix& matrix, const Place& place, const IntegerBlock* integers) {
  bool panels = matrix.layout == Layout::panels;
  for (int64_t i = 0; i < kLanes; i++) std::memcpy(place.scales + 2 * i, &integers[i].scale, 2);
  for (int64_t j = 0; j < kBlock; j++)
    for (int64_t i = 0; i < kLanes; i++) {
      uint8_t value = integers[i].values[j];
      if (matrix.type == Type::q8) {
        place.weights[panels ? (j / 4 * kLanes + i) * 4 + j % 4 : j * matrix.column_bytes() + place.row + i] = value;
        continue;
      }
      bool upper = panels ? j % 8 >= 4 : place.row % 32 >= 16;
      uint8_t& byte =
          place
              .weights[panels ? (j / 8 * kLanes + i) * 4 + j % 4 : j * matrix.column_bytes() + place.row / 32 * 16 + i];
      byte = static_cast<uint8_t>(upper ? (byte & 15) | (value << 4) : (byte & 0xf0) | value);
    }
}

// Numbers of 16 rows, `width` apart, likewise.
void store_floats(const Matrix& matrix, const Place& place, const float* floats, int64_t width) {
  bool panels = matrix.layout == Layout::panels;
  for (int64_t j = 0; j < kBlock; j++)
    for (int64_t i = 0; i < kLanes; i++) {
      float value = floats[i * width + j];
      int64_t index = panels ? j * kLanes + i : j * kSlab + place.row + i;
      if (panels && matrix.type == Type::bf16) index = (j / 2 * kLanes + i) * 2 + j % 2;
      if (matrix.type == Type::fp32)
        reinterpret_cast<float*>(place.weights)[index] = value;
      else
        reinterpret_cast<uint16_t*>(place.weights)[index] = to_bf16(value);
    }
}

// A row of the matrix from a source that may be its transpose.
void read_weights(const Source& source, int64_t row, int64_t columns, float* values) {
  if (!source.transposed) return read_row(source, row, columns, values);
  Source element = source;
  element.data += row * (source.type == SourceType::f32 ? 4 : 2);
  for (int64_t column = 0; column < columns; column++, element.data += source.row_bytes)
    read_row(element, 0, 1, values + column);
}

}  // namespace

int64_t OperandBuffer::bytes(int64_t max_tokens, int64_t columns) {
  int64_t width = padded(columns, kBlock);
  return aligned(max_tokens * width * 4) + 2 * aligned(max_tokens * width / kBlock * 4);
}

OperandBuffer::OperandBuffer(void* memory, int64_t max_tokens, int64_t columns) {
  int64_t width = padded(columns, kBlock);
  values_ = static_cast<uint8_t*>(memory);
  scales_ = reinterpret_cast<float*>(values_ + aligned(max_tokens * width * 4));
  corrections_ =
      reinterpret_cast<int32_t*>(reinterpret_cast<uint8_t*>(scales_) + aligned(max_tokens * width / kBlock * 4));
}

void OperandBuffer::convert(Type type, const float* x, int64_t x_stride, int64_t columns, int64_t tokens, int64_t begin,
                            int64_t end) const {
  for (int64_t token = begin; token < end; token++)
    convert_columns(type, x + token * x_stride, 0, columns, tokens, token);
}

void OperandBuffer::convert_columns(Type type, const float* x, int64_t begin, int64_t end, int64_t tokens,
                                    int64_t token) const {
  const MatrixKernels& matrix = kernels().matrix;
  const float* from = x + begin;
  int64_t columns = end - begin, block = begin / kBlock * tokens + token;
  uint8_t* to = values_ + block * kBlock * operand_value_bytes(type);
  if (type == Type::fp32)
    matrix.convert_floats(from, columns, tokens, reinterpret_cast<float*>(to));
  else if (type == Type::bf16)
    matrix.convert_bf16(from, columns, tokens, reinterpret_cast<uint16_t*>(to));
  else
    matrix.convert_integers(from, columns, tokens, offset_of(type), reinterpret_cast<int8_t*>(to), scales_ + block,
                            corrections_ + block);
}

int64_t multiply_scratch_bytes(const Matrix& matrix) {
  if (matrix.layout == Layout::panels) return 0;
  int64_t panels = kSlab / kLanes * matrix.weights_at(kBlocksMade);
  // What is not zero: 8 bytes for each column, or 20 for each four of them and 4 for each block.
  int64_t skipping = (matrix.blocks() * kBlock + 4) * 8 + (matrix.blocks() + 1) * 4;
  return aligned(std::max(panels, skipping));
}

void multiply(const Matrix& matrix, const Operand& x, float* y, int64_t y_stride, int64_t begin, int64_t end,
              void* scratch) {
  kernels().matrix.multiply(matrix, x, y, y_stride, begin, end, scratch);
}

void read_row(const Source& source, int64_t row, int64_t columns, float* values) {
  const uint8_t* raw = source.data + row * source.row_bytes;
  switch (source.type) {
    case SourceType::f32:
      std::memcpy(values, raw, columns * 4);
      break;
    case SourceType::f16:
      for (int64_t i = 0; i < columns; i++) values[i] = from_f16(read_u16(raw + 2 * i));
      break;
    case SourceType::bf16:
      for (int64_t i = 0; i < columns; i++) values[i] = from_bf16(read_u16(raw + 2 * i));
      break;
    case SourceType::q8_0:
      for (int64_t i = 0; i < columns; i++) {
        const uint8_t* block = raw + i / kBlock * kQ8Bytes;
        values[i] = from_f16(read_u16(block)) * static_cast<int8_t>(block[2 + i % kBlock]);
      }
      break;
    case SourceType::q4_0:
      for (int64_t i = 0; i < columns; i++) {
        const uint8_t* block = raw + i / kBlock * kQ4Bytes;
        int within = static_cast<int>(i % kBlock);
        int q = within < 16 ? block[2 + within] & 15 : block[2 + within - 16] >> 4;
        values[i] = from_f16(read_u16(block)) * static_cast<float>(q - 8);
      }
      break;
  }
}

void pack(const Matrix& matrix, const Source& source, uint8_t* memory, int64_t begin, int64_t end) {
  int64_t blocks = matrix.blocks(), width = blocks * kBlock, limit = padded(end, matrix.unit());
  bool exact = is_exact(matrix.type, source.type);
  // Sixteen rows at a time, so that what is written lies together.
  std::vector<float> floats(kLanes * width);
  IntegerBlock integers[kLanes];
  for (int64_t first = begin; first < limit; first += kLanes) {
    if (!exact) {
      std::fill(floats.begin(), floats.end(), 0.0f);
      for (int64_t i = 0; i < kLanes && first + i < matrix.rows; i++)
        read_weights(source, first + i, matrix.columns, &floats[i * width]);
    }
    for (int64_t block = 0; block < blocks; block++) {
      Place place = place_of(matrix, memory, first, block);
      if (!matrix.has_scales()) {
        store_floats(matrix, place, &floats[block * kBlock], width);
        continue;
      }
      for (int64_t i = 0; i < kLanes; i++)
        integers[i] = first + i < matrix.rows ? integer_block(matrix.type, source, first + i, block, &floats[i * width])
                                              : no_block(matrix.type);
      store_integers(matrix, place, integers);
    }
  }
}

}  // namespace rookery
