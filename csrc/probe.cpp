#include "probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>

#include "kernels.h"
#include "team.h"

namespace rookery {
namespace {

constexpr int64_t kUnit = 1024;  // bytes in which memory is shared out among threads

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Runs work(member) `repetitions` times on a team and returns the seconds of each, from when all have begun until
// all are done.
template <class Work>
std::vector<double> timed(int threads, int repetitions, Work&& work) {
  std::vector<double> seconds(repetitions);
  run_team(threads, [&](const Member& member) {
    for (int i = 0; i < repetitions; i++) {
      member.barrier();
      Clock::time_point start = Clock::now();
      work(member);
      member.barrier();
      if (member.index == 0) seconds[i] = seconds_since(start);
    }
  });
  return seconds;
}

double best(const std::vector<double>& seconds) { return *std::min_element(seconds.begin(), seconds.end()); }

// Results that nobody needs, so that the compiler cannot leave out the work.
std::atomic<float> kept;

}  // namespace

ReadProbe::ReadProbe(int64_t bytes, int threads)
    : bytes_(padded(bytes, kUnit)), threads_(threads), memory_(arena_.take(bytes_)) {
  // Pages that were never written to are all the same one. Bytes of 1 make floats that are ordinary numbers.
  run_team(threads_, [&](const Member& member) {
    Share share = member.share(bytes_, kUnit);
    std::memset(memory_ + share.begin, 1, share.end - share.begin);
  });
}

double ReadProbe::bandwidth(int repetitions) const {
  const ProbeKernels& probe = kernels().probe;
  std::vector<double> seconds = timed(threads_, repetitions, [&](const Member& member) {
    Share share = member.share(bytes_, kUnit);
    kept = probe.read(memory_ + share.begin, share.end - share.begin);
  });
  return static_cast<double>(bytes_) / best(seconds);
}

double peak(Arithmetic arithmetic, int threads, int repetitions) {
  const ProbeKernels& probe = kernels().probe;
  alignas(64) int8_t bytes[64] = {};
  alignas(64) uint16_t halves[32] = {};
  alignas(64) float floats[16] = {};
  auto work = [&](int64_t rounds) {
    switch (arithmetic) {
      case Arithmetic::int8:
        kept = probe.int8(rounds, bytes);
        break;
      case Arithmetic::bf16:
        kept = probe.bf16(rounds, halves);
        break;
      case Arithmetic::fp32:
        kept = probe.fp32(rounds, floats);
        break;
    }
  };
  // As many rounds as take five milliseconds: long against a barrier, short against what else the machine does.
  int64_t rounds = 1000;
  for (;; rounds *= 2) {
    Clock::time_point start = Clock::now();
    work(rounds);
    if (seconds_since(start) > 5e-3) break;
  }
  std::vector<double> seconds = timed(threads, repetitions, [&](const Member&) { work(rounds); });
  int64_t lanes = arithmetic == Arithmetic::int8 ? 4 * kLanes : arithmetic == Arithmetic::bf16 ? 2 * kLanes : kLanes;
  return 2.0 * static_cast<double>(lanes * probe.per_round * rounds * threads) / best(seconds);
}

std::vector<double> time_products(const std::vector<Product>& products, int threads, int repetitions) {
  struct Prepared {
    std::vector<uint8_t> memory;
    OperandBuffer operand;
  };
  std::vector<Prepared> prepared(products.size());
  int64_t scratch_bytes = 0, outputs = 0;
  for (size_t i = 0; i < products.size(); i++) {
    const Product& product = products[i];
    const Matrix& matrix = *product.matrix;
    prepared[i].memory.resize(OperandBuffer::bytes(product.tokens, matrix.columns) + 64);
    void* start = prepared[i].memory.data();
    size_t space = prepared[i].memory.size();
    prepared[i].operand = OperandBuffer(std::align(64, 1, start, space), product.tokens, matrix.columns);
    prepared[i].operand.convert(matrix.type, product.x, matrix.columns, matrix.columns, product.tokens, 0,
                                product.tokens);
    scratch_bytes = std::max(scratch_bytes, multiply_scratch_bytes(matrix));
    outputs = std::max(outputs, product.tokens * matrix.rows);
  }
  Arena arena;
  uint8_t* scratch = arena.take(threads * scratch_bytes);
  float* y = reinterpret_cast<float*>(arena.take(outputs * 4));
  return timed(threads, repetitions, [&](const Member& member) {
    for (size_t i = 0; i < products.size(); i++) {
      const Matrix& matrix = *products[i].matrix;
      Share rows = member.share(matrix.rows, row_unit(matrix));
      multiply(matrix, prepared[i].operand.view(products[i].tokens), y, matrix.rows, rows.begin, rows.end,
               scratch + member.index * scratch_bytes);
      member.barrier();
    }
  });
}

int64_t bytes_read(const Matrix& matrix, const float* x) {
  if (matrix.layout == Layout::panels) return matrix.bytes();
  int64_t size = operand_value_bytes(matrix.type);
  std::vector<uint8_t> memory(OperandBuffer::bytes(1, matrix.columns) + 64);
  void* start = memory.data();
  size_t space = memory.size();
  OperandBuffer operand(std::align(64, 1, start, space), 1, matrix.columns);
  operand.convert(matrix.type, x, matrix.columns, matrix.columns, 1, 0, 1);
  const uint8_t* values = operand.view(1).values;
  int64_t total = 0;
  for (int64_t block = 0; block < matrix.blocks(); block++) {
    int64_t present = 0;
    for (int64_t column = block * kBlock; column < (block + 1) * kBlock; column++)
      present += std::any_of(values + column * size, values + (column + 1) * size, [](uint8_t b) { return b != 0; });
    total += matrix.padded_rows() / kSlab * present * matrix.column_bytes();
    if (present > 0) total += matrix.padded_rows() / kSlab * matrix.slab_scale_bytes();
  }
  return total;
}

}  // namespace rookery
