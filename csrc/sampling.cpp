#include "sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "kernels.h"

namespace rookery {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kRare = 16;       // where one of so many is wanted, the others are passed over
constexpr int64_t kFew = 48;        // values that are sorted
constexpr int64_t kSumBlock = 512;  // weights that a draw passes over at a time

// A part of the vocabulary, or all of it: id, score and weight of each token. Without ids they are 0, 1, 2, ...
struct Row {
  int64_t n, padded;
  double* scores;
  double* weights;
  const int32_t* ids;
};

// What stays of some values: those above `value`, and of those that equal it, `equal` or fewer, the first `kept`.
struct Cut {
  double value;
  int64_t kept, equal;
};

int64_t padded(int64_t n) { return (n + kScoresUnit - 1) / kScoresUnit * kScoresUnit; }

template <class Number>
Number* room(std::vector<Number>& memory, int64_t n) {
  if (memory.size() < static_cast<size_t>(n)) memory.resize(static_cast<size_t>(n));
  return memory.data();
}

// Integers in the order of doubles (no NaN; -0 is 0), and back.
uint64_t ordered(double x) {
  int64_t bits = std::bit_cast<int64_t>(x + 0.0);
  return static_cast<uint64_t>(bits ^ ((bits >> 63) | INT64_MIN));
}
double from_ordered(uint64_t bits) {
  int64_t sign = static_cast<int64_t>(~bits) >> 63;
  return std::bit_cast<double>(static_cast<int64_t>(bits) ^ (sign | INT64_MIN));
}

// The cut that leaves the fewest largest of n values whose masses reach `wanted`: the mass of a value is itself, or 1
// where they are counted. `smallest` and `largest` are among them; what is smaller has no mass. `values` is padded.
Cut find_cut(const double* values, int64_t n, double smallest, double largest, double wanted, bool counted,
             SamplingScratch& scratch) {
  double above = 0;
  auto mass = [counted](double x) { return counted ? 1 : x; };
  while (n > kFew && smallest < largest) {
    uint64_t low = ordered(smallest), high = ordered(largest);
    int shift = std::max(0, static_cast<int>(std::bit_width(high - low)) - std::countr_zero(unsigned{kBuckets}));
    Buckets buckets = {};
    kernels().sampling.add_to_buckets(values, n, smallest, shift, counted, buckets);
    int bucket = kBuckets;
    double masses = 0;
    // Where rounding leaves the sum below what is wanted, the first bucket, which holds the smallest, is the last.
    do {
      above += masses;
      bucket--;
      masses = 0;
      for (const double (&table)[kBuckets] : buckets.sums) masses += table[bucket];
    } while (bucket > 0 && (masses == 0 || above + masses < wanted));
    uint64_t first = low + (static_cast<uint64_t>(bucket) << shift), width = uint64_t{1} << shift;
    double end = high - first < width ? kInfinity : from_ordered(first + width);
    int32_t* positions = room(scratch.positions, padded(n));
    n = kernels().sampling.find_within(values, padded(n), from_ordered(first), end, positions);
    double* next = room(scratch.refined, padded(n));
    smallest = kInfinity;
    largest = -kInfinity;
    for (int64_t i = 0; i < n; i++) {
      next[i] = values[positions[i]];
      smallest = std::min(smallest, next[i]);
      largest = std::max(largest, next[i]);
    }
    std::fill(next + n, next + padded(n), -kInfinity);
    values = next;
  }
  if (smallest == largest)
    return {largest, std::max<int64_t>(1, static_cast<int64_t>(std::ceil((wanted - above) / mass(largest)))), n};
  double sorted[kFew];
  std::copy(values, values + n, sorted);
  std::sort(sorted, sorted + n, std::greater<double>());
  int64_t last = 0;
  while (last + 1 < n && (above += mass(sorted[last])) < wanted) last++;
  auto [begin, end] = std::equal_range(sorted, sorted + n, sorted[last], std::greater<double>());
  return {sorted[last], sorted + last + 1 - begin, end - begin};
}

// Steps 1 to 3 of the definition. The largest score; NaN where there is an error.
double make_scores(const float* logits, int64_t n, const Draw& draw, double* scores) {
  constexpr double kError = std::numeric_limits<double>::quiet_NaN();
  const SamplingOptions& options = *draw.options;
  double largest = kernels().sampling.widen(logits, n, scores);
  if (std::isnan(largest)) return kError;
  for (int64_t i = 0; i < draw.observed; i++) {
    if (draw.tokens[i] < 0 || draw.tokens[i] >= n) return kError;
    double& x = scores[draw.tokens[i]];
    if (options.repetition_penalty != 1) x = x > 0 ? x / options.repetition_penalty : x * options.repetition_penalty;
    x -= options.presence_penalty + options.frequency_penalty * draw.counts[i];
  }
  for (int64_t token : options.banned) {
    if (token < 0 || token >= n) return kError;
    scores[token] = -kInfinity;
  }
  if (draw.observed > 0 || !options.banned.empty()) largest = kernels().sampling.largest_score(scores, padded(n));
  return largest > -kInfinity ? largest : kError;
}

// Step 5. The scores are relative to the largest, as what rounding makes equal ranks by id.
void keep_top_k(Row& row, int64_t k, SamplingScratch& scratch) {
  int32_t* ids = room(scratch.ids, row.padded);
  // At least k scores are no smaller than the k-th of the largest scores of groups: for a small k, few more.
  int64_t groups = (row.n + kScoresGroup - 1) / kScoresGroup, found = row.n;
  double least = -kInfinity;
  if (k <= groups / 2) {
    double* tops = room(scratch.chosen, groups);
    kernels().sampling.largest_of_groups(row.scores, row.padded, tops);
    std::nth_element(tops, tops + k - 1, tops + groups, std::greater<double>());
    least = tops[k - 1];
  }
  double* chosen = row.scores;
  if (least > -kInfinity) {
    found = kernels().sampling.find_within(row.scores, row.padded, least, kInfinity, ids);
    chosen = room(scratch.chosen, padded(found));
    for (int64_t i = 0; i < found; i++) chosen[i] = row.scores[ids[i]];
    std::fill(chosen + found, chosen + padded(found), -kInfinity);
  }
  Cut cut = find_cut(chosen, found, least, 0, static_cast<double>(k), true, scratch);
  found = kernels().sampling.find_within(row.scores, row.padded, cut.value, kInfinity, ids);
  int64_t kept = 0, equal = 0;
  for (int64_t i = 0; i < found; i++) {
    double score = row.scores[ids[i]];
    if (score == cut.value && ++equal > cut.kept) continue;
    ids[kept] = ids[i];
    row.scores[kept++] = score;
  }
  row.n = kept;
  row.padded = padded(kept);
  row.ids = ids;
  std::fill(row.scores + kept, row.scores + row.padded, -kInfinity);
}

void drop_below(Row& row, double cut) {
  // The scores as well, where they are still needed: at another temperature they would have weights again.
  if (row.scores != row.weights) kernels().sampling.drop(row.weights, row.padded, cut, row.scores, -kInfinity);
  kernels().sampling.drop(row.weights, row.padded, cut, row.weights, 0.0);
}

// Step 6.
void keep_top_p(Row& row, double top_p, const Weighed& weighed, SamplingScratch& scratch) {
  double wanted = top_p * weighed.sum;
  Cut cut;
  if (weighed.large > wanted && weighed.large_count < row.n / kRare) {
    int32_t* positions = room(scratch.positions, row.padded);
    int64_t found = kernels().sampling.find_within(row.weights, row.padded, kLargeWeight, kInfinity, positions);
    double* large = room(scratch.chosen, padded(found));
    std::fill(large + found, large + padded(found), 0.0);
    double smallest = 1;
    for (int64_t i = 0; i < found; i++) smallest = std::min(smallest, large[i] = row.weights[positions[i]]);
    cut = find_cut(large, found, smallest, 1.0, wanted, false, scratch);
  } else {
    cut = find_cut(row.weights, row.n, weighed.smallest, 1.0, wanted, false, scratch);
  }
  drop_below(row, cut.value);
  if (cut.kept >= cut.equal) return;
  // Of equal weights those with higher ids go first.
  for (int64_t i = kernels().sampling.nth_equal(row.weights, row.padded, cut.value, cut.kept + 1); i < row.n; i++)
    if (row.weights[i] == cut.value) {
      row.scores[i] = -kInfinity;
      row.weights[i] = 0;
    }
}

// Steps 1 to 7. False where there is an error.
bool choose(const float* logits, int64_t n, const Draw& draw, SamplingScratch& scratch, Row& row) {
  const SamplingOptions& options = *draw.options;
  double* scores = room(scratch.scores, padded(n));
  // Scores are needed after the weights only for weights at a second temperature.
  row = {n, padded(n), scores, options.temperature_last ? room(scratch.weights, padded(n)) : scores, nullptr};
  double largest = make_scores(logits, n, draw, row.scores);
  if (std::isnan(largest)) return false;
  if (options.temperature == 0 || options.top_k == 1) {
    int64_t token = kernels().sampling.nth_equal(row.scores, row.padded, largest, 1);
    std::fill(row.weights, row.weights + row.padded, 0.0);
    row.weights[token] = 1;
    return true;
  }
  if (options.top_k > 0 && options.top_k < n) {
    for (int64_t i = 0; i < row.padded; i++) row.scores[i] -= largest;
    largest = 0;
    keep_top_k(row, options.top_k, scratch);
  }
  // A temperature so small that its inverse is infinite would make NaN of the largest score.
  double inverse = std::min(1 / options.temperature, std::numeric_limits<double>::max());
  Weighed weighed =
      kernels().sampling.weigh(row.scores, row.padded, largest, options.temperature_last ? 1 : inverse, row.weights);
  if (options.top_p < 1) keep_top_p(row, options.top_p, weighed, scratch);
  if (options.min_p > 0) drop_below(row, options.min_p);
  if (options.temperature_last) {
    // Relative to the likeliest that is left: where rounding made weights equal, it may be another.
    largest = kernels().sampling.largest_score(row.scores, row.padded);
    kernels().sampling.weigh(row.scores, row.padded, largest, inverse, row.weights);
  }
  return true;
}

// Step 8: the first position at which the running sum exceeds u times the whole sum.
int64_t draw_position(const Row& row, double u, SamplingScratch& scratch) {
  int64_t blocks = (row.padded + kSumBlock - 1) / kSumBlock;
  double* sums = room(scratch.chosen, blocks);
  double total = 0, running = 0;
  for (int64_t b = 0; b < blocks; b++) {
    sums[b] =
        kernels().sampling.sum_weights(row.weights + b * kSumBlock, std::min(kSumBlock, row.padded - b * kSumBlock));
    total += sums[b];
  }
  int64_t last = 0;
  for (int64_t b = 0; b < blocks; b++) {
    if (running + sums[b] <= u * total) {
      running += sums[b];
      continue;
    }
    for (int64_t i = b * kSumBlock; i < std::min((b + 1) * kSumBlock, row.n); i++) {
      if (row.weights[i] == 0) continue;
      running += row.weights[i];
      last = i;
      if (running > u * total) return i;
    }
  }
  // Summed one by one a block came out smaller, by rounding: no more than a hair was left.
  if (row.weights[last] == 0)
    for (int64_t i = 0; i < row.n; i++)
      if (row.weights[i] > 0) last = i;
  return last;
}

}  // namespace

int64_t sample(const float* logits, int64_t n, const Draw& draw, SamplingScratch& scratch) {
  const SamplingOptions& options = *draw.options;
  bool greedy = options.temperature == 0 || options.top_k == 1;
  if (greedy && draw.observed == 0 && options.banned.empty()) return kernels().sampling.first_largest(logits, n);
  Row row;
  if (!choose(logits, n, draw, scratch, row)) return kNoToken;
  int64_t position = draw_position(row, uniform(draw.seed, draw.step), scratch);
  return row.ids == nullptr ? position : row.ids[position];
}

bool candidates(const float* logits, int64_t n, const Draw& draw, SamplingScratch& scratch, double* weights) {
  Row row;
  if (!choose(logits, n, draw, scratch, row)) return false;
  std::fill(weights, weights + n, 0.0);
  for (int64_t i = 0; i < row.n; i++) weights[row.ids == nullptr ? i : row.ids[i]] = row.weights[i];
  return true;
}

double uniform(uint64_t seed, uint64_t step) {
  uint64_t z = seed + (step + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return std::ldexp(static_cast<double>((z ^ (z >> 31)) >> 11), -53);
}

}  // namespace rookery
