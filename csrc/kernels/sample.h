// Sampling's passes over the vocabulary. What they are for is told in sampling.h and sampling.cpp; rows of doubles
// are padded to kScoresUnit.
#pragma once

#include "lanes/doubles.h"
#include "sampling.h"

namespace rookery::ROOKERY_LANES {
namespace {

// The largest of 64 logits, and in `poison` NaN where one of them is NaN or +inf.
ROOKERY_INLINE Floats largest_of_64(const float* x, Floats& poison) {
  Floats result = broadcast(-__FLT_MAX__);
  for (int i = 0; i < 64; i += 16) {
    Floats logits = load(x + i);
    // -inf is a logit like any other; max has its second argument where the first is NaN.
    poison = fma(max(broadcast(-__FLT_MAX__), logits), broadcast(0.0f), poison);
    result = max(logits, result);
  }
  return result;
}

int64_t first_largest(const float* logits, int64_t n) {
  Floats poison = broadcast(0.0f), running = broadcast(-__FLT_MAX__);
  int64_t whole = n / 64 * 64;
  for (int64_t i = 0; i < whole; i += 64) running = max(largest_of_64(logits + i, poison), running);
  float largest = maximum(running), bad = sum(poison);
  for (int64_t i = whole; i < n; i++) {
    if (!(logits[i] < __builtin_inff())) return kNoToken;
    if (logits[i] > largest) largest = logits[i];
  }
  if (bad != bad) return kNoToken;
  // Where it is, by a second look: 64 at a time until the block that has it.
  int64_t block = 0;
  while (block < whole && maximum(largest_of_64(logits + block, poison)) != largest) block += 64;
  for (int64_t i = block; i < n; i++)
    if (logits[i] == largest) return i;
  return kNoToken;  // all are -inf
}

double widen(const float* logits, int64_t n, double* scores) {
  typedef float Half __attribute__((vector_size(sizeof(Doubles) / 2)));
  Doubles running = every(-__builtin_inf());
  Longs bad = {};
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) {
    Half half;
    __builtin_memcpy(&half, logits + i, sizeof half);
    Doubles x = __builtin_convertvector(half, Doubles);
    bad |= ~(x < __builtin_inf());
    running = larger(x, running);
    store(scores + i, x);
  }
  double largest = -__builtin_inf();
  int64_t any = 0;
  for (int j = 0; j < kDoubles; j++) {
    any |= bad[j];
    if (running[j] > largest) largest = running[j];
  }
  for (; i < n; i++) {
    scores[i] = static_cast<double>(logits[i]);
    any |= scores[i] < __builtin_inf() ? 0 : 1;
    if (scores[i] > largest) largest = scores[i];
  }
  for (; i % kScoresUnit != 0; i++) scores[i] = -__builtin_inf();
  return any != 0 ? __builtin_nan("") : largest;
}

double largest_score(const double* scores, int64_t n) {
  Doubles running = every(-__builtin_inf());
  for (int64_t i = 0; i < n; i += kDoubles) running = larger(load(scores + i), running);
  double largest = running[0];
  for (int j = 1; j < kDoubles; j++)
    if (running[j] > largest) largest = running[j];
  return largest;
}

void largest_of_groups(const double* scores, int64_t n, double* largest) {
  for (int64_t i = 0; i < n; i += kScoresGroup) {
    int64_t end = i + kScoresGroup < n ? i + kScoresGroup : n;
    *largest++ = largest_score(scores + i, end - i);
  }
}

Weighed weigh(const double* scores, int64_t n, double largest, double inverse_temperature, double* weights) {
  Doubles total = {}, large = {}, smallest = every(1.0);
  Longs many = {};
  for (int64_t i = 0; i < n; i += kDoubles) {
    Doubles w = exp_of_negative((load(scores + i) - largest) * inverse_temperature);
    store(weights + i, w);
    total += w;
    large += w >= kLargeWeight ? w : Doubles{};
    many -= w >= kLargeWeight;
    smallest = smaller(smallest, w > 0.0 ? w : every(1.0));
  }
  Weighed result = {0, 0, 0, 1};
  for (int j = 0; j < kDoubles; j++) {
    result.sum += total[j];
    result.large += large[j];
    result.large_count += many[j];
    if (smallest[j] < result.smallest) result.smallest = smallest[j];
  }
  return result;
}

double sum_weights(const double* weights, int64_t n) {
  Doubles total = {};
  for (int64_t i = 0; i < n; i += kDoubles) total += load(weights + i);
  double result = 0;
  for (int j = 0; j < kDoubles; j++) result += total[j];
  return result;
}

void drop(const double* weights, int64_t n, double cut, double* values, double instead) {
  for (int64_t i = 0; i < n; i += kDoubles)
    store(values + i, load(weights + i) < cut ? every(instead) : load(values + i));
}

void add_to_buckets(const double* values, int64_t n, double smallest, int shift, bool count, Buckets& buckets) {
  constexpr int kChunk = 256;
  int32_t places[kChunk];
  uint64_t low = ordered(smallest);
  for (int64_t start = 0; start < n; start += kChunk) {
    int size = n - start < kChunk ? static_cast<int>(n - start) : kChunk;
    const double* from = values + start;
    for (int i = 0; i < size; i++) {
      double x = from[i] > smallest ? from[i] : smallest;
      places[i] = static_cast<int32_t>((ordered(x) - low) >> shift);
    }
    if (count)
      for (int i = 0; i < size; i++) buckets.sums[i % kBucketTables][places[i]] += 1;
    else
      for (int i = 0; i < size; i++) buckets.sums[i % kBucketTables][places[i]] += from[i];
  }
}

int64_t nth_equal(const double* values, int64_t n, double value, int64_t nth) {
  for (int64_t i = 0; i < n; i += kScoresUnit) {
    Longs equal = {};
    for (int64_t j = i; j < i + kScoresUnit; j += kDoubles) equal -= load(values + j) == value;
    int64_t count = 0;
    for (int j = 0; j < kDoubles; j++) count += equal[j];
    if (count < nth) {
      nth -= count;
      continue;
    }
    for (int64_t j = i; j < i + kScoresUnit; j++)
      if (values[j] == value && --nth == 0) return j;
  }
  return n;
}

int64_t find_within(const double* values, int64_t n, double low, double high, int32_t* positions) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += kScoresUnit) {
    Longs any = {};
    for (int64_t j = i; j < i + kScoresUnit; j += kDoubles) {
      Doubles x = load(values + j);
      any |= (x >= low) & (x < high);
    }
    int64_t found = 0;
    for (int j = 0; j < kDoubles; j++) found |= any[j];
    if (found == 0) continue;
    for (int64_t j = i; j < i + kScoresUnit; j++) {
      positions[count] = static_cast<int32_t>(j);
      count += values[j] >= low && values[j] < high ? 1 : 0;
    }
  }
  return count;
}

constexpr SamplingKernels sampling_kernels() {
  return {first_largest, widen, largest_score,  largest_of_groups, weigh,
          sum_weights,   drop,  add_to_buckets, nth_equal,         find_within};
}

}  // namespace
}  // namespace rookery::ROOKERY_LANES
