#include "bindings/packed_matrix.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <vector>

#include "bindings/bindings.h"
#include "quantize.h"
#include "team.h"

namespace rookery {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

constexpr int64_t kMostWeights = int64_t{1} << 48;

using Raw = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void make(PackedMatrix* self, std::shared_ptr<Arena> arena, Raw data, const std::string& source, int64_t rows,
          int64_t columns, const std::string& type, const std::string& layout, bool transposed, int threads) {
  checked_threads(threads);
  check_sizes(rows, columns);
  Source from;
  from.type = source_type_of(source);
  from.data = data.data();
  from.transposed = transposed;
  bool blocks = from.type == SourceType::q8_0 || from.type == SourceType::q4_0;
  if (transposed && blocks) throw std::invalid_argument("blocks of integers cannot be transposed");
  from.row_bytes = source_row_bytes(from.type, transposed ? rows : columns);
  int64_t wanted = from.row_bytes * (transposed ? columns : rows);
  if (static_cast<int64_t>(data.size()) != wanted)
    throw std::invalid_argument("a matrix of " + std::to_string(rows) + " x " + std::to_string(columns) + " in " +
                                source + " needs " + std::to_string(wanted) + " bytes, not " +
                                std::to_string(data.size()));
  Matrix matrix;
  matrix.rows = rows;
  matrix.columns = columns;
  matrix.type = type_of(type);
  matrix.layout = layout_of(layout);
  uint8_t* memory = arena->take(matrix.bytes());
  matrix.data = memory;
  {
    nb::gil_scoped_release release;
    run_team(threads, [&](const Member& member) {
      Share share = member.share(matrix.rows, row_unit(matrix));
      pack(matrix, from, memory, share.begin, share.end);
    });
  }
  new (self) PackedMatrix{matrix, std::move(arena)};
}

nb::ndarray<nb::numpy, float> multiply_array(const PackedMatrix& self, Floats2 x, int threads) {
  checked_threads(threads);
  const Matrix& matrix = self.matrix;
  if (static_cast<int64_t>(x.shape(1)) != matrix.columns)
    throw std::invalid_argument("x has " + std::to_string(x.shape(1)) + " columns, but the matrix has " +
                                std::to_string(matrix.columns));
  int64_t tokens = static_cast<int64_t>(x.shape(0));
  float* y = new float[static_cast<size_t>(tokens * matrix.rows)];
  nb::capsule owner(y, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  {
    nb::gil_scoped_release release;
    int64_t bytes = OperandBuffer::bytes(tokens, matrix.columns), each = multiply_scratch_bytes(matrix);
    std::vector<uint8_t> memory(static_cast<size_t>(bytes + threads * each + 64));
    uint8_t* start = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    OperandBuffer buffer(start, tokens, matrix.columns);
    run_team(threads, [&](const Member& member) {
      Share mine = member.share(tokens);
      buffer.convert(matrix.type, x.data(), matrix.columns, matrix.columns, tokens, mine.begin, mine.end);
      member.barrier();
      Share rows = member.share(matrix.rows, row_unit(matrix));
      multiply(matrix, buffer.view(tokens), y, matrix.rows, rows.begin, rows.end, start + bytes + member.index * each);
    });
  }
  return nb::ndarray<nb::numpy, float>(y, {static_cast<size_t>(tokens), static_cast<size_t>(matrix.rows)}, owner);
}

}  // namespace

int checked_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads)
    throw std::invalid_argument("threads must be 1 to " + std::to_string(kMaxThreads) + ", not " +
                                std::to_string(threads));
  return threads;
}

void check_sizes(int64_t rows, int64_t columns) {
  if (rows < 1 || columns < 1 || rows > INT32_MAX || columns > INT32_MAX || rows > kMostWeights / columns)
    throw std::invalid_argument("a matrix needs at least one row and one column, fewer than 2^31, and 2^48 weights");
}

Type type_of(const std::string& name) {
  if (name == "float32") return Type::fp32;
  if (name == "bfloat16") return Type::bf16;
  if (name == "q8") return Type::q8;
  if (name == "q4") return Type::q4;
  throw std::invalid_argument("there is no weight type '" + name + "'; there are float32, bfloat16, q8, q4");
}

Layout layout_of(const std::string& name) {
  if (name == "panels") return Layout::panels;
  if (name == "columns") return Layout::columns;
  throw std::invalid_argument("there is no layout '" + name + "'; there are panels, columns");
}

SourceType source_type_of(const std::string& name) {
  if (name == "float32") return SourceType::f32;
  if (name == "float16") return SourceType::f16;
  if (name == "bfloat16") return SourceType::bf16;
  if (name == "q8_0") return SourceType::q8_0;
  if (name == "q4_0") return SourceType::q4_0;
  throw std::invalid_argument("there is no source type '" + name +
                              "'; there are float32, float16, bfloat16, q8_0, q4_0");
}

int64_t source_row_bytes(SourceType type, int64_t columns) {
  switch (type) {
    case SourceType::f32:
      return 4 * columns;
    case SourceType::f16:
    case SourceType::bf16:
      return 2 * columns;
    case SourceType::q8_0:
    case SourceType::q4_0:
      break;
  }
  if (columns % kBlock != 0)
    throw std::invalid_argument("rows of " + std::to_string(columns) + " do not consist of blocks of 32");
  return columns / kBlock * (type == SourceType::q8_0 ? kQ8Bytes : kQ4Bytes);
}

void bind_matrix(nb::module_& m) {
  nb::class_<Arena>(m, "Arena", "Memory for the weights of one model.")
      .def(nb::init<>())
      .def_prop_ro("bytes", &Arena::bytes_taken, "Bytes handed out.");
  nb::class_<PackedMatrix>(m, "Matrix", "A weight matrix [rows, columns] as the kernels read it (csrc/matrix.h).")
      .def("__init__", &make, "arena"_a, "data"_a, nb::kw_only(), "source"_a, "rows"_a, "columns"_a, "type"_a,
           "layout"_a = "panels", "transposed"_a = false, "threads"_a = 1)
      .def_prop_ro("rows", [](const PackedMatrix& self) { return self.matrix.rows; })
      .def_prop_ro("columns", [](const PackedMatrix& self) { return self.matrix.columns; })
      .def_prop_ro("bytes", [](const PackedMatrix& self) { return self.matrix.bytes(); })
      .def("multiply", &multiply_array, "x"_a, "threads"_a = 1,
           "x [T, columns] float32 times the transpose: [T, rows] float32.");
}

}  // namespace rookery
