// Weight matrices: how they lie in memory, and what multiplies them.
//
// A matrix has `rows` outputs and `columns` inputs. Its weights are fp32, bf16, or blocks of 32 inputs of one
// output that share a 16-bit scale: q8, 8-bit integers (scale * (u - 128)), and q4, 4-bit ones (scale * (u - 8)).
//
// Layout `panels`, for most matrices. Sixteen rows are a group, and a group is one run of memory that is read
// from front to back: 16 lanes of a register are 16 outputs, so that no sum goes across lanes, and an input is
// the same for all of them. 64 bytes of it are 16 rows of
//
//     fp32: 1 column     bf16: 2 columns     q8: 4 columns     q4: 4 columns in the lower halves, 4 in the upper
//
// In q8 and q4 a line of 64 bytes with 32 scales comes before every two blocks. It has to be there: with all scales
// in front of the group, the jump from group to group (every 12 KB) threw the prefetcher off, and half of the
// bandwidth was lost; in one run, scales and all, a thread reads as fast as it can read anything.
// The same bytes serve one token, a few streams (the weight, once loaded, meets several tokens in registers) and a
// long prompt (12 tokens at a time), on every instruction set.
//
// Layout `columns`, for a matrix of more than 4 bits whose input is mostly zeros: the value matrix of channel mixing,
// whose inputs are squares of rectified sums. In slabs of 128 rows, all rows of one column lie together, so that for a
// zero input nothing is read; the slab's scales of a block come before the block's columns. Several tokens, whose zeros
// are not the same, skip each its own in fp32; for other types, which multiply several columns in one instruction,
// panels are made of 8 blocks of a slab at a time, in cache. (16 bytes of q4 hold rows r to r + 15 in the lower halves
// and r + 16 to r + 31 in the upper.)
//
// Rows are padded to groups (columns: to slabs), columns to blocks of 32, both with zeros.
//
// Inputs are converted before they are multiplied: to bf16 for bf16 weights, and for q8 and q4 to blocks of 32
// 8-bit integers with a scale. One token goes through the same conversion as many: so that decoding and prefill
// compute the same.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rookery {

enum class Type : uint8_t { fp32, bf16, q8, q4 };
enum class Layout : uint8_t { panels, columns };

constexpr int64_t kLanes = 16;      // rows of a group
constexpr int64_t kBlock = 32;      // columns that share a scale; every type pads its columns to it
constexpr int64_t kBlocksMade = 8;  // blocks of a slab of which panels are made at a time: 34 KB of q8
constexpr int64_t kSlab = 128;      // rows of a slab: what one pass sums up in registers

inline __attribute__((always_inline)) constexpr int64_t padded(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

// Kernels call these, and a function that is not inlined would be shared among instruction sets (kernels/all.h).
#define ROOKERY_GEOMETRY inline __attribute__((always_inline))

struct Matrix {
  int64_t rows = 0, columns = 0;
  Type type = Type::fp32;
  Layout layout = Layout::panels;
  const uint8_t* data = nullptr;  // 64-byte aligned; not owned

  ROOKERY_GEOMETRY int64_t unit() const { return layout == Layout::panels ? kLanes : kSlab; }
  ROOKERY_GEOMETRY int64_t padded_rows() const { return padded(rows, unit()); }
  ROOKERY_GEOMETRY int64_t blocks() const { return padded(columns, kBlock) / kBlock; }
  ROOKERY_GEOMETRY bool has_scales() const { return type == Type::q8 || type == Type::q4; }
  // Bytes of the weights of one row in one block.
  ROOKERY_GEOMETRY int64_t block_bytes() const {
    return type == Type::fp32 ? 4 * kBlock : type == Type::bf16 ? 2 * kBlock : type == Type::q8 ? kBlock : kBlock / 2;
  }

  // panels: where a block of a group is, from the group's start.
  ROOKERY_GEOMETRY int64_t scale_line() const { return has_scales() ? 64 : 0; }
  ROOKERY_GEOMETRY int64_t pair_bytes() const { return scale_line() + 2 * kLanes * block_bytes(); }
  ROOKERY_GEOMETRY int64_t weights_at(int64_t block) const {
    return block / 2 * pair_bytes() + scale_line() + block % 2 * kLanes * block_bytes();
  }
  ROOKERY_GEOMETRY int64_t scales_at(int64_t block) const { return block / 2 * pair_bytes() + block % 2 * 32; }
  ROOKERY_GEOMETRY int64_t bytes_of_group() const {
    return (blocks() + 1) / 2 * scale_line() + blocks() * kLanes * block_bytes();
  }

  // columns: where a block of a slab is, from the slab's start: its scales, then its columns.
  ROOKERY_GEOMETRY int64_t slab_scale_bytes() const { return has_scales() ? 2 * kSlab : 0; }
  ROOKERY_GEOMETRY int64_t column_bytes() const { return kSlab * block_bytes() / kBlock; }
  ROOKERY_GEOMETRY int64_t slab_block_bytes() const { return slab_scale_bytes() + kBlock * column_bytes(); }
  ROOKERY_GEOMETRY int64_t bytes_of_slab() const { return blocks() * slab_block_bytes(); }

  ROOKERY_GEOMETRY int64_t bytes() const {
    return layout == Layout::panels ? padded_rows() / kLanes * bytes_of_group()
                                    : padded_rows() / kSlab * bytes_of_slab();
  }
};

// Inputs of a matrix, converted to what its type multiplies: [blocks][tokens][32 columns], so that in a block all
// tokens lie at distances that the compiler knows.
struct Operand {
  const uint8_t* values = nullptr;       // fp32, bf16 or 8-bit integers
  const float* scales = nullptr;         // q8, q4: [blocks][tokens]
  const int32_t* corrections = nullptr;  // q8, q4: minus the weights' offset times the sum of the block's integers
  int64_t tokens = 0;
};

inline __attribute__((always_inline)) constexpr int64_t operand_value_bytes(Type type) {
  return type == Type::fp32 ? 4 : type == Type::bf16 ? 2 : 1;
}

// Memory for the converted inputs of up to `max_tokens` tokens. It is not owned: `bytes` of it, 64-byte aligned.
class OperandBuffer {
 public:
  static int64_t bytes(int64_t max_tokens, int64_t columns);
  OperandBuffer() = default;
  OperandBuffer(void* memory, int64_t max_tokens, int64_t columns);

  // Converts tokens [begin, end) of the `tokens` tokens of x, [tokens][columns] floats, for matrices of a type.
  void convert(Type type, const float* x, int64_t x_stride, int64_t columns, int64_t tokens, int64_t begin,
               int64_t end) const;
  // The same for one token alone, whose columns begin at x, and of these for [begin, end): begin is a multiple of 32.
  void convert_columns(Type type, const float* x, int64_t begin, int64_t end, int64_t tokens, int64_t token) const;
  Operand view(int64_t tokens) const { return {values_, scales_, corrections_, tokens}; }

 private:
  uint8_t* values_ = nullptr;
  float* scales_ = nullptr;
  int32_t* corrections_ = nullptr;
};

// Memory that each thread needs for itself to multiply a matrix.
int64_t multiply_scratch_bytes(const Matrix& matrix);

// y[token][row] = sum over columns of matrix[row][column] x[token][column], for rows [begin, end), which are
// multiples of matrix.unit() or the end. `scratch` is this thread's.
void multiply(const Matrix& matrix, const Operand& x, float* y, int64_t y_stride, int64_t begin, int64_t end,
              void* scratch);

// The unit in which rows are shared out among threads.
inline int64_t row_unit(const Matrix& matrix) { return matrix.unit(); }

// What weights are made from: rows of columns, in row order, with `row_bytes` from one row to the next. `q8_0` and
// `q4_0` are GGML's blocks: a 16-bit scale and 32 integers of 8 or 4 bits. `stored_columns` true: the file has the
// transpose, [columns][rows] (fp32, bf16 and f16 only).
enum class SourceType : uint8_t { f32, f16, bf16, q8_0, q4_0 };
struct Source {
  SourceType type = SourceType::f32;
  const uint8_t* data = nullptr;
  int64_t row_bytes = 0;
  bool transposed = false;
};

// Writes rows [begin, end) (bounds as in `multiply`) of the matrix into `memory`, of matrix.bytes(), from a source
// of matrix.rows x matrix.columns. Every number type of a source goes to every type of weights; q8_0 to q8 and q4_0
// to q4 exactly.
void pack(const Matrix& matrix, const Source& source, uint8_t* memory, int64_t begin, int64_t end);

// One row of a source as floats.
void read_row(const Source& source, int64_t row, int64_t columns, float* values);

// What an instruction set has for this. Conversions are of one token, whose blocks lie `tokens` blocks apart.
struct MatrixKernels {
  void (*convert_floats)(const float* x, int64_t columns, int64_t tokens, float* values);
  void (*convert_bf16)(const float* x, int64_t columns, int64_t tokens, uint16_t* values);
  void (*convert_integers)(const float* x, int64_t columns, int64_t tokens, int32_t offset, int8_t* values,
                           float* scales, int32_t* corrections);
  void (*multiply)(const Matrix& matrix, const Operand& x, float* y, int64_t y_stride, int64_t begin, int64_t end,
                   void* scratch);
};

}  // namespace rookery
