// Quantization of whole matrices.
#include "quantize.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/packed_matrix.h"
#include "team.h"

namespace rookery {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Raw = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

nb::tuple quantize_array(Raw data, const std::string& source, int64_t rows, int64_t columns, const std::string& type,
                         int threads) {
  checked_threads(threads);
  check_sizes(rows, columns);
  Source from;
  from.type = source_type_of(source);
  from.data = data.data();
  from.row_bytes = source_row_bytes(from.type, columns);
  SourceType to = source_type_of(type);
  if (to != SourceType::q8_0 && to != SourceType::q4_0)
    throw std::invalid_argument("there are blocks of q8_0 and q4_0, not '" + type + "'");
  if (static_cast<int64_t>(data.size()) != from.row_bytes * rows)
    throw std::invalid_argument("a matrix of " + std::to_string(rows) + " x " + std::to_string(columns) + " in " +
                                source + " needs " + std::to_string(from.row_bytes * rows) + " bytes, not " +
                                std::to_string(data.size()));
  int64_t row_bytes = source_row_bytes(to, columns);
  auto* blocks = new uint8_t[static_cast<size_t>(rows * row_bytes)];
  nb::capsule owner(blocks, [](void* p) noexcept { delete[] static_cast<uint8_t*>(p); });
  double errors = 0, squares = 0;
  {
    nb::gil_scoped_release release;
    // A row has its own sums, so that they do not depend on the number of threads.
    std::vector<double> error_of(static_cast<size_t>(rows)), square_of(static_cast<size_t>(rows));
    std::vector<float> floats(static_cast<size_t>(2 * columns * threads));
    run_team(threads, [&](const Member& member) {
      Share share = member.share(rows);
      float* values = floats.data() + 2 * columns * member.index;
      float* back = values + columns;
      for (int64_t row = share.begin; row < share.end; row++) {
        uint8_t* made = blocks + row * row_bytes;
        read_row(from, row, columns, values);
        (to == SourceType::q8_0 ? quantize_q8_0 : quantize_q4_0)(values, columns, made);
        read_row({to, made, row_bytes, false}, 0, columns, back);
        double error = 0, square = 0;
        for (int64_t i = 0; i < columns; i++) {
          double off = static_cast<double>(back[i]) - values[i];
          error += off * off;
          square += static_cast<double>(values[i]) * values[i];
        }
        error_of[static_cast<size_t>(row)] = error;
        square_of[static_cast<size_t>(row)] = square;
      }
    });
    for (double error : error_of) errors += error;
    for (double square : square_of) squares += square;
  }
  nb::ndarray<nb::numpy, uint8_t> array(blocks, {static_cast<size_t>(rows), static_cast<size_t>(row_bytes)}, owner);
  return nb::make_tuple(array, errors, squares);
}

}  // namespace

void bind_quantize(nb::module_& m) {
  m.def("quantize", &quantize_array, "data"_a, nb::kw_only(), "source"_a, "rows"_a, "columns"_a, "type"_a,
        "threads"_a = 1,
        nb::sig("def quantize(data: typing.Annotated[numpy.typing.NDArray[numpy.uint8], dict(shape=(None,), "
                "order='C', device='cpu', writable=False)], *, source: str, rows: int, columns: int, type: str, "
                "threads: int = 1) -> tuple[numpy.typing.NDArray[numpy.uint8], float, float]"),
        "Rows of a matrix to blocks of q8_0 or q4_0: uint8 [rows, columns / 32 * bytes of a block], the sum of squared "
        "errors, and the sum of squared weights.");
}

}  // namespace rookery
