// Measurements, for benchmarks/.
#include "probe.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bindings/bindings.h"
#include "bindings/packed_matrix.h"

namespace rookery {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Floats1 = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check_width(int64_t columns, const Matrix& matrix) {
  if (columns != matrix.columns)
    throw std::invalid_argument("x has " + std::to_string(columns) + " columns, but the matrix has " +
                                std::to_string(matrix.columns));
}

void check_repetitions(int repetitions) {
  if (repetitions < 1) throw std::invalid_argument("repetitions must be at least 1");
}

template <Arithmetic arithmetic>
double measured_peak(int threads, int repetitions) {
  checked_threads(threads);
  check_repetitions(repetitions);
  nb::gil_scoped_release release;
  return peak(arithmetic, threads, repetitions);
}

std::vector<double> timed_products(const std::vector<const PackedMatrix*>& matrices, const std::vector<Floats2>& inputs,
                                   int threads, int repetitions) {
  checked_threads(threads);
  check_repetitions(repetitions);
  if (matrices.size() != inputs.size()) throw std::invalid_argument("every matrix needs one array of inputs");
  std::vector<Product> products;
  for (size_t i = 0; i < matrices.size(); i++) {
    if (matrices[i] == nullptr) throw std::invalid_argument("a matrix is missing");
    check_width(static_cast<int64_t>(inputs[i].shape(1)), matrices[i]->matrix);
    products.push_back({&matrices[i]->matrix, inputs[i].data(), static_cast<int64_t>(inputs[i].shape(0))});
  }
  nb::gil_scoped_release release;
  return time_products(products, threads, repetitions);
}

}  // namespace

void bind_probe(nb::module_& m) {
  nb::class_<ReadProbe>(m, "ReadProbe", "Memory that lies as weights do, to be read by a number of threads.")
      .def(
          "__init__",
          [](ReadProbe* self, int64_t bytes, int threads) {
            if (bytes < 1) throw std::invalid_argument("bytes must be at least 1");
            new (self) ReadProbe(bytes, checked_threads(threads));
          },
          "bytes"_a, "threads"_a)
      .def(
          "bandwidth",
          [](const ReadProbe& self, int repetitions) {
            check_repetitions(repetitions);
            nb::gil_scoped_release release;
            return self.bandwidth(repetitions);
          },
          "repetitions"_a = 5, "Bytes read per second; the best repetition.");
  m.def("int8_peak", &measured_peak<Arithmetic::int8>, "threads"_a, "repetitions"_a = 20,
        "Operations per second of dot products of 8-bit integers, on registers; the best repetition.");
  m.def("bf16_peak", &measured_peak<Arithmetic::bf16>, "threads"_a, "repetitions"_a = 20,
        "Operations per second of dot products of bfloat16, on registers; the best repetition.");
  m.def("fp32_peak", &measured_peak<Arithmetic::fp32>, "threads"_a, "repetitions"_a = 20,
        "Operations per second of products and sums in float32, on registers; the best repetition.");
  m.def("time_products", &timed_products, "matrices"_a, "inputs"_a, "threads"_a, "repetitions"_a,
        "Seconds of each repetition of multiplying every matrix with its inputs [T, columns] float32, in turn.");
  m.def(
      "bytes_read",
      [](const PackedMatrix& matrix, Floats1 x) {
        check_width(static_cast<int64_t>(x.shape(0)), matrix.matrix);
        return bytes_read(matrix.matrix, x.data());
      },
      "matrix"_a, "x"_a, "Bytes of a matrix that are read to multiply it with x [columns] float32.");
}

}  // namespace rookery
