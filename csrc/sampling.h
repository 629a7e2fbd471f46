// From logits to a token. The definition is src/rookery/generate/sampling.py, whose steps this follows in float64;
// tests hold the two together.
//
// No step sorts the vocabulary. A row of doubles, padded with scores of -inf (weights of 0), goes through passes over
// vectors (kernels/sample.h). What is truncated becomes a weight of 0, which no draw meets, and stays in its place;
// only top-k makes the row short. Where to cut is found in a histogram of the weights, refined in the one bucket that
// holds the cut until few are left.
#pragma once

#include <cstdint>
#include <vector>

namespace rookery {

constexpr int64_t kNoToken = -1;
constexpr int64_t kScoresUnit = 16;            // rows of scores and weights are padded to it
constexpr int64_t kScoresGroup = 64;           // scores that top-k looks at together
constexpr double kLargeWeight = 1.0 / 1024.0;  // of weights relative to the largest: of a trained model, few are

struct SamplingOptions {
  double temperature = 1;
  int64_t top_k = 0;
  double top_p = 1, min_p = 0;
  bool temperature_last = false;
  double presence_penalty = 0, frequency_penalty = 0, repetition_penalty = 1;
  std::vector<int64_t> banned;
};

// One stream's next token: its options, what it observed (each token once, with its decayed count), and the place in
// its random numbers.
struct Draw {
  const SamplingOptions* options;
  const int64_t* tokens;
  const double* counts;
  int64_t observed;
  uint64_t seed, step;
};

// Memory for one draw at a time; kept, so that the next one allocates nothing.
struct SamplingScratch {
  std::vector<double> scores, weights, chosen, refined;
  std::vector<int32_t> ids, positions;
};

// A token; or kNoToken where the definition raises an error: NaN or +inf among the logits, an id outside of them, or
// nothing left to choose. May throw std::bad_alloc.
int64_t sample(const float* logits, int64_t n, const Draw& draw, SamplingScratch& scratch);

// What `sample` draws from: in weights [n], of each id its weight relative to the likeliest, 0 where it was truncated.
// False where `sample` gives kNoToken.
bool candidates(const float* logits, int64_t n, const Draw& draw, SamplingScratch& scratch, double* weights);

// Output number `step` of splitmix64 with a seed, as a number in [0, 1).
double uniform(uint64_t seed, uint64_t step);

struct Weighed {
  double sum, large;    // of all weights, and of those of kLargeWeight or more,
  int64_t large_count;  // of which there are so many
  double smallest;      // that is not 0
};

// A histogram of masses, in several tables, so that equal values in a row do not wait for each other.
constexpr int kBuckets = 512, kBucketTables = 4;
struct Buckets {
  double sums[kBucketTables][kBuckets];
};

// What an instruction set has for this. Rows of doubles are padded; n may be the padded number, and must be where
// memory is written. A row that begins inside of another is aligned to nothing.
struct SamplingKernels {
  // The first of the largest logits; kNoToken where one is NaN or +inf, or all are -inf.
  int64_t (*first_largest)(const float* logits, int64_t n);
  // Logits as doubles, padded with -inf. The largest; NaN where one is NaN or +inf.
  double (*widen)(const float* logits, int64_t n, double* scores);
  double (*largest_score)(const double* scores, int64_t n);
  // Of every kScoresGroup scores.
  void (*largest_of_groups)(const double* scores, int64_t n, double* largest);
  // exp((score - largest) / temperature); weights may be the scores.
  Weighed (*weigh)(const double* scores, int64_t n, double largest, double inverse_temperature, double* weights);
  double (*sum_weights)(const double* weights, int64_t n);
  // values[i] = instead, where weights[i] < cut.
  void (*drop)(const double* weights, int64_t n, double cut, double* values, double instead);
  // Adds each value, or 1, to the bucket (ordered(value) - ordered(smallest)) >> shift (0 for what is smaller).
  void (*add_to_buckets)(const double* values, int64_t n, double smallest, int shift, bool count, Buckets& buckets);
  // The position of the nth (1, 2, ...) of the values that equal one; n where there are fewer.
  int64_t (*nth_equal)(const double* values, int64_t n, double value, int64_t nth);
  // Ascending positions of the values from low up to, not including, high; returns how many. `positions` has room for
  // n.
  int64_t (*find_within)(const double* values, int64_t n, double low, double high, int32_t* positions);
};

}  // namespace rookery
