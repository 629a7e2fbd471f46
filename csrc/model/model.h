// A model: a call of `step` runs tokens of many streams through all of its layers.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "model/mixing.h"
#include "model/pass.h"
#include "model/weights.h"

namespace rookery {

// Tokens whose log-probabilities are wanted: only where they are is the head computed, and no logits come out.
struct Targets {
  const int64_t* rows;    // [count], ascending: after which of the call's tokens; one row may have several targets
  const int64_t* tokens;  // [count]
  int64_t count;
  double* log_probabilities;  // [count]; NaN where a logit is NaN or infinite
  uint8_t* likeliest;         // [count]: whether no token is more probable, and none of a smaller id as probable
  float* logits;              // room for the logits of min(count, kPromptTokens) rows
};

// Streams of any lengths: the tokens of each follow those of the one before.
struct Call {
  const int64_t* tokens;
  const int64_t* counts;  // [streams], each at least 1
  const int64_t* slots;   // [streams], where in the states a stream's is; no two alike
  int64_t streams;
  StateArrays before, after;  // may be the same memory
  bool all_logits;
  float* logits;  // [streams][vocabulary], after the last token of each; with all_logits [all tokens][vocabulary]
  const Targets* targets = nullptr;  // in place of logits
};

class Model {
 public:
  // The embedding is not copied. Throws std::invalid_argument where weights are missing or do not fit.
  Model(const Config& config, Weights weights, const Source& embedding, int threads);

  const Config& config() const { return config_; }
  int threads() const { return threads_; }

  // Allocates nothing. Where a state holds NaN or infinity, one such place is returned; what else was computed is
  // right for the streams that it is not of. Calls from several threads wait for each other. All numbers of the call
  // must be in their ranges.
  std::optional<Fault> step(const Call& call);

 private:
  // Of a pass, what the last channel mixing is about; `wanted` rows give logits.
  Pass last_of(const Pass& pass, int64_t wanted);
  void run(const Context& context, const Pass& last, const int64_t* tokens);
  void embed(const Context& context, const int64_t* tokens);
  // Logits of some rows of x.
  void predict(const Context& context, const float* x, const int32_t* rows, int64_t count, float* logits);
  // Keeps some rows of x for `score`; and the log-probabilities of targets after all rows kept.
  void keep(const Context& context, const int32_t* rows, int64_t count);
  void score(const Context& context, const Targets& targets);
  Context context_of(const Pass& pass, const Member& member) const;

  Config config_;
  Weights weights_;
  Source embedding_;
  int threads_;
  Norm embedding_norm_, output_norm_;
  const Matrix* head_;
  Scratch scratch_;
  std::unique_ptr<TimeMixing> time_mixing_;
  std::unique_ptr<ChannelMixing> channel_mixing_;
  OperandBuffer head_input_;
  float *x_, *normal_, *output_;
  float* kept_;                        // [kPassTokens][width]
  std::vector<int32_t> kept_rows_;     // 0, 1, 2, ...
  std::vector<int64_t> first_target_;  // of each row kept, and the end
  int64_t num_kept_ = 0;
  std::vector<Own> own_;  // of each thread
  std::vector<Span> spans_;
  std::vector<int32_t> span_of_row_, wanted_, last_rows_;
  std::mutex one_at_a_time_;
};

}  // namespace rookery
