// Sampling, for one stream or for many at once.
#include "sampling.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <new>
#include <stdexcept>
#include <string>

#include "bindings/bindings.h"
#include "team.h"

namespace rookery {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// What one stream brings; a view of Python's objects, which live as long as the call.
struct Stream {
  const SamplingOptions* options;
  Tokens tokens;
  Counts counts;
  uint64_t seed, step;

  Draw draw() const { return {options, tokens.data(), counts.data(), static_cast<int64_t>(tokens.size()), seed, step}; }
};

Stream stream_of(nb::handle given) {
  nb::tuple row = nb::cast<nb::tuple>(given);
  if (row.size() != 5) throw std::invalid_argument("a stream is (options, tokens, counts, seed, step)");
  Stream stream = {nb::cast<const SamplingOptions*>(row[0]), nb::cast<Tokens>(row[1]), nb::cast<Counts>(row[2]),
                   nb::cast<uint64_t>(row[3]), nb::cast<uint64_t>(row[4])};
  if (stream.options == nullptr) throw std::invalid_argument("a stream needs options");
  if (stream.tokens.size() != stream.counts.size())
    throw std::invalid_argument("a stream needs one count for each token");
  return stream;
}

int64_t vocabulary_of(const Logits& logits) {
  if (logits.shape(1) < 1 || logits.shape(1) > INT32_MAX)
    throw std::invalid_argument("a vocabulary has 1 to 2^31 - 1 tokens, not " + std::to_string(logits.shape(1)));
  return static_cast<int64_t>(logits.shape(1));
}

SamplingScratch& own_scratch() {
  thread_local SamplingScratch scratch;
  return scratch;
}

std::vector<int64_t> sample_rows(Logits logits, nb::list streams, int threads) {
  if (threads < 1 || threads > kMaxThreads)
    throw std::invalid_argument("threads must be 1 to " + std::to_string(kMaxThreads) + ", not " +
                                std::to_string(threads));
  int64_t n = vocabulary_of(logits), count = static_cast<int64_t>(logits.shape(0));
  if (static_cast<int64_t>(streams.size()) != count)
    throw std::invalid_argument(std::to_string(count) + " rows of logits need as many streams, not " +
                                std::to_string(streams.size()));
  std::vector<Stream> rows;
  rows.reserve(static_cast<size_t>(count));
  for (nb::handle each : streams) rows.push_back(stream_of(each));
  std::vector<int64_t> tokens(rows.size(), kNoToken);
  std::atomic<bool> out_of_memory{false};
  {
    nb::gil_scoped_release release;
    auto work = [&](int64_t begin, int64_t end) {
      try {
        for (int64_t i = begin; i < end; i++)
          tokens[static_cast<size_t>(i)] =
              sample(logits.data() + i * n, n, rows[static_cast<size_t>(i)].draw(), own_scratch());
      } catch (const std::bad_alloc&) {
        out_of_memory = true;
      }
    };
    if (threads == 1 || count < 2)
      work(0, count);
    else
      run_team(threads, [&](const Member& member) {
        Share share = member.share(count);
        work(share.begin, share.end);
      });
  }
  if (out_of_memory) throw std::bad_alloc();
  return tokens;
}

nb::object candidate_weights(nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu> logits,
                             nb::tuple given) {
  Stream stream = stream_of(given);
  size_t n = logits.size();
  if (n < 1 || n > INT32_MAX) throw std::invalid_argument("a vocabulary has 1 to 2^31 - 1 tokens");
  double* weights = new double[n];
  nb::capsule owner(weights, [](void* p) noexcept { delete[] static_cast<double*>(p); });
  if (!candidates(logits.data(), static_cast<int64_t>(n), stream.draw(), own_scratch(), weights)) return nb::none();
  return nb::cast(nb::ndarray<nb::numpy, double>(weights, {n}, owner));
}

}  // namespace

void bind_sampling(nb::module_& m) {
  nb::class_<SamplingOptions>(m, "SamplingOptions", "What SamplingParams says, checked there.")
      .def(
          "__init__",
          [](SamplingOptions* self, double temperature, int64_t top_k, double top_p, double min_p,
             bool temperature_last, double presence_penalty, double frequency_penalty, double repetition_penalty,
             std::vector<int64_t> banned) {
            new (self) SamplingOptions{temperature,
                                       top_k,
                                       top_p,
                                       min_p,
                                       temperature_last,
                                       presence_penalty,
                                       frequency_penalty,
                                       repetition_penalty,
                                       std::move(banned)};
          },
          nb::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "temperature_last"_a, "presence_penalty"_a,
          "frequency_penalty"_a, "repetition_penalty"_a, "banned"_a);
  m.def("sample", &sample_rows, "logits"_a, "streams"_a, "threads"_a = 1,
        "Tokens for logits [B, N] float32, of B tuples (options, tokens int64 [M], counts float64 [M], seed, step); "
        "-1 where the definition (rookery.generate.sampling) raises an error.");
  m.def("candidate_weights", &candidate_weights, "logits"_a, "stream"_a,
        "What `sample` draws from: float64 [N], 0 where truncated; None where it gives -1.");
}

}  // namespace rookery
