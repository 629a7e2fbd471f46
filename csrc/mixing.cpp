#include "mixing.h"

#include <algorithm>
#include <vector>

#include "guest.h"
#include "kernels.h"

namespace rookery {
namespace {

// Fewer numbers than this are not worth a second thread.
constexpr int64_t kFewest = 16384;

// Adjoining ranges of n pieces of `numbers` numbers each, whose bounds are multiples of unit.
struct Ranges {
  int64_t n, unit, count;

  Ranges(int64_t n_, int64_t numbers, int threads, int64_t unit_ = 1)
      : n(n_), unit(unit_), count(std::clamp<int64_t>(n_ * numbers / kFewest, 1, threads)) {}
  int64_t bound(int64_t i) const { return std::min((n + unit - 1) / unit * i / count * unit, n); }
};

template <class Work>
void run_ranges(const Ranges& ranges, int threads, Work&& work) {
  run_tasks(threads, ranges.count, [&](int64_t i, int) { work(ranges.bound(i), ranges.bound(i + 1)); });
}

// Work that makes `size` sums of each range; their totals go to `to`.
template <class Work>
void run_summing(const Ranges& ranges, int threads, int64_t size, float* to, Work&& work) {
  // Of each range cache lines of its own.
  int64_t stride = (size + 15) / 16 * 16 + 16;
  std::vector<float> sums(static_cast<size_t>(ranges.count * stride));
  run_tasks(threads, ranges.count,
            [&](int64_t i, int) { work(ranges.bound(i), ranges.bound(i + 1), sums.data() + i * stride); });
  for (int64_t k = 0; k < size; k++) {
    to[k] = 0;
    for (int64_t i = 0; i < ranges.count; i++) to[k] += sums[static_cast<size_t>(i * stride + k)];
  }
}

}  // namespace

void token_shift_forward(const TokenShift& x, int threads) {
  run_ranges(Ranges(x.batch * x.tokens, x.channels, threads), threads,
             [&](int64_t begin, int64_t end) { kernels().mixing.token_shift_forward(x, begin, end); });
}

void token_shift_backward(const TokenShift& x, int threads) {
  Ranges ranges(x.batch * x.tokens, x.channels, threads);
  run_summing(
      ranges, threads, x.varying ? 0 : x.count * x.channels, x.sums,
      [&](int64_t begin, int64_t end, float* sums) { kernels().mixing.token_shift_backward(x, begin, end, sums); });
}

void inputs7_forward(const Inputs7& x, int threads) {
  run_ranges(Ranges(x.size.batch * x.size.tokens, x.size.heads * x.size.keys, threads), threads,
             [&](int64_t begin, int64_t end) { kernels().mixing.inputs7_forward(x, begin, end); });
}

void inputs7_backward(const Inputs7& x, int threads) {
  int64_t channels = x.size.heads * x.size.keys;
  run_summing(Ranges(x.size.batch * x.size.tokens, channels, threads), threads, kVectors7 * channels, x.sums,
              [&](int64_t begin, int64_t end, float* sums) { kernels().mixing.inputs7_backward(x, begin, end, sums); });
}

void output7_forward(const Output7& x, int threads) {
  run_ranges(Ranges(x.size.batch * x.size.tokens, x.size.heads * x.size.keys, threads), threads,
             [&](int64_t begin, int64_t end) { kernels().mixing.output7_forward(x, begin, end); });
}

void output7_backward(const Output7& x, int threads) {
  int64_t channels = x.size.heads * x.size.keys;
  run_summing(Ranges(x.size.batch * x.size.tokens, channels, threads), threads, kOutputVectors7 * channels, x.sums,
              [&](int64_t begin, int64_t end, float* sums) { kernels().mixing.output7_backward(x, begin, end, sums); });
}

void squared_relu_forward(const Sequence& x, const Sequence& y, int64_t n, int threads) {
  run_ranges(Ranges(n, 1, threads, 64), threads,
             [&](int64_t begin, int64_t end) { kernels().mixing.squared_relu_forward(x, y, begin, end); });
}

void squared_relu_backward(const Sequence& y, const Sequence& dy, const Sequence& dx, int64_t n, int threads) {
  run_ranges(Ranges(n, 1, threads, 64), threads,
             [&](int64_t begin, int64_t end) { kernels().mixing.squared_relu_backward(y, dy, dx, begin, end); });
}

}  // namespace rookery
