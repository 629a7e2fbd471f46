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

void store_float(Type type, uint8_t* place, int64_t index, float value) {
  if (type == Type::fp32)
    reinterpret_cast<float*>(place)[index] = value;
  else
    reinterpret_cast<uint16_t*>(place)[index] = to_bf16(value);
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
  const MatrixKernels& matrix = kernels().matrix;
  for (int64_t token = begin; token < end; token++) {
    const float* from = x + token * x_stride;
    uint8_t* to = values_ + token * kBlock * operand_value_bytes(type);
    if (type == Type::fp32)
      matrix.convert_floats(from, columns, tokens, reinterpret_cast<float*>(to));
    else if (type == Type::bf16)
      matrix.convert_bf16(from, columns, tokens, reinterpret_cast<uint16_t*>(to));
    else
      matrix.convert_integers(from, columns, tokens, offset_of(type), reinterpret_cast<int8_t*>(to), scales_ + token,
                              corrections_ + token);
  }
}

int64_t multiply_scratch_bytes(const Matrix& matrix) {
  if (matrix.layout == Layout::panels) return 0;
  int64_t panels = 4 * matrix.bytes_of_group();
  int64_t skipping = (matrix.blocks() * kBlock + 1) * 8 + (matrix.blocks() + 1) * 4;
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
  int64_t blocks = matrix.blocks(), width = blocks * kBlock;
  bool panels = matrix.layout == Layout::panels, exact = is_exact(matrix.type, source.type);
  int64_t limit = panels ? padded(end, kLanes) : padded(end, 4 * kLanes);
  // Sixteen rows at a time, so that what is written lies together.
  std::vector<float> floats(kLanes * width);
  std::vector<IntegerBlock> integers(kLanes);
  for (int64_t first = begin; first < limit; first += kLanes) {
    if (!exact || !matrix.has_scales()) {
      std::fill(floats.begin(), floats.end(), 0.0f);
      for (int64_t i = 0; i < kLanes; i++) {
        if (first + i >= matrix.rows) break;
        if (!source.transposed) {
          read_row(source, first + i, matrix.columns, &floats[i * width]);
          continue;
        }
        for (int64_t column = 0; column < matrix.columns; column++) {
          Source element = source;
          element.data += column * source.row_bytes + (first + i) * (source.type == SourceType::f32 ? 4 : 2);
          read_row(element, 0, 1, &floats[i * width + column]);
        }
      }
    }
    uint8_t* group = memory + first / kLanes * matrix.bytes_of_group();
    uint8_t* scales = panels ? group : memory + first * 2;
    int64_t scale_stride = panels ? kLanes * 2 : matrix.padded_rows() * 2;
    uint8_t* weights = panels ? group + matrix.scale_bytes_of_group() : memory + matrix.scale_bytes();
    for (int64_t block = 0; block < blocks; block++) {
      if (!matrix.has_scales()) {
        for (int64_t j = block * kBlock; j < (block + 1) * kBlock; j++)
          for (int64_t i = 0; i < kLanes; i++) {
            int64_t index = panels ? (matrix.type == Type::fp32 ? j * kLanes + i : (j / 2 * kLanes + i) * 2 + j % 2)
                                   : j * matrix.padded_rows() + first + i;
            store_float(matrix.type, weights, index, floats[i * width + j]);
          }
        continue;
      }
      for (int64_t i = 0; i < kLanes; i++)
        integers[i] = first + i < matrix.rows ? integer_block(matrix.type, source, first + i, block, &floats[i * width])
                                              : no_block(matrix.type);
      for (int64_t i = 0; i < kLanes; i++) std::memcpy(scales + block * scale_stride + 2 * i, &integers[i].scale, 2);
      for (int64_t j = 0; j < kBlock; j++)
        for (int64_t i = 0; i < kLanes; i++) {
          uint8_t value = integers[i].values[j];
          if (matrix.type == Type::q8) {
            if (panels)
              weights[block * kBlock * kLanes + (j / 4 * kLanes + i) * 4 + j % 4] = value;
            else
              weights[(block * kBlock + j) * matrix.bytes_of_column() + first + i] = value;
            continue;
          }
          bool upper = panels ? j % 8 >= 4 : (first + i) % 32 >= 16;
          uint8_t& place = panels ? weights[block * kBlock * kLanes / 2 + (j / 8 * kLanes + i) * 4 + j % 4]
                                  : weights[(block * kBlock + j) * matrix.bytes_of_column() + first / 32 * 16 + i];
          place =
              upper ? static_cast<uint8_t>((place & 15) | (value << 4)) : static_cast<uint8_t>((place & 0xf0) | value);
        }
    }
  }
}

}  // namespace rookery
