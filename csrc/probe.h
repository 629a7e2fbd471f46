// What the machine can do: the limits that the kernels are measured against.
#pragma once

#include <cstdint>
#include <vector>

#include "arena.h"
#include "matrix.h"

namespace rookery {

// Memory that lies as weights do, and how fast it is read: `threads` threads, each its own part from front to back.
// To measure memory, `bytes` must be several times the last cache.
class ReadProbe {
 public:
  ReadProbe(int64_t bytes, int threads);

  // Bytes per second, the best of `repetitions`.
  double bandwidth(int repetitions) const;

 private:
  Arena arena_;
  int64_t bytes_;
  int threads_;
  uint8_t* memory_;
};

// Operations per second, a product and its sum counted as two, of dot products on registers alone.
enum class Arithmetic { int8, bf16, fp32 };
double peak(Arithmetic arithmetic, int threads, int repetitions);

// One matrix times its inputs, [tokens][columns].
struct Product {
  const Matrix* matrix;
  const float* x;
  int64_t tokens;
};

// Multiplies all products in turn, as a model's step does: rows shared among threads, a barrier after each. Inputs
// are converted before the clock starts. Returns the seconds of each repetition.
std::vector<double> time_products(const std::vector<Product>& products, int threads, int repetitions);

// Bytes of the matrix that one token has read: all of them, but in layout columns only those of inputs that are not
// zero once they are converted, and the scales of their blocks.
int64_t bytes_read(const Matrix& matrix, const float* x);

// What an instruction set has for this. `read` reads all bytes (a multiple of 1024) and returns something made of
// them; the others do `rounds` rounds of `per_round` dot products.
struct ProbeKernels {
  float (*read)(const uint8_t* memory, int64_t bytes);
  float (*int8)(int64_t rounds, const int8_t* x);
  float (*bf16)(int64_t rounds, const uint16_t* x);
  float (*fp32)(int64_t rounds, const float* x);
  int64_t per_round;
};

}  // namespace rookery
