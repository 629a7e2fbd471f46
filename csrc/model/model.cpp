#include "model/model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace rookery {
namespace {

std::unique_ptr<TimeMixing> make_time_mixing(const Config& config, const Weights& weights, Scratch& scratch) {
  switch (config.version) {
    case Version::v4:
      return make_time_mixing_4(config, weights, scratch);
    case Version::v5_0:
    case Version::v5_1:
    case Version::v5_2:
      return make_time_mixing_5(config, weights, scratch);
    case Version::v6:
      return make_time_mixing_6(config, weights, scratch);
    case Version::v7:
      return make_time_mixing_7(config, weights, scratch);
  }
  throw std::invalid_argument("there is no such version");
}

}  // namespace

Model::Model(const Config& config, Weights weights, const Source& embedding, int threads)
    : config_(config), weights_(std::move(weights)), embedding_(embedding), threads_(threads) {
  int64_t D = config.width;
  embedding_norm_ = weights_.norm("blocks.0.ln0", D);
  output_norm_ = weights_.norm("ln_out", D);
  head_ = weights_.matrix("head", config.vocab_size, D);
  time_mixing_ = make_time_mixing(config_, weights_, scratch_);
  channel_mixing_ = std::make_unique<ChannelMixing>(config_, weights_, scratch_);
  head_input_ = scratch_.input(D);
  x_ = scratch_.floats(D);
  normal_ = scratch_.floats(D);
  output_ = scratch_.floats(D);
  kept_ = scratch_.floats(D);
  kept_rows_.resize(kPassTokens);
  std::iota(kept_rows_.begin(), kept_rows_.end(), 0);
  first_target_.resize(kPassTokens + 1);
  int64_t row_bytes = padded(D * 4, 64);
  for (int thread = 0; thread < threads; thread++) {
    Own own;
    for (float*& row : own.rows) row = static_cast<float*>(scratch_.bytes(row_bytes));
    own.multiply = scratch_.bytes(weights_.multiply_scratch_bytes());
    own_.push_back(own);
  }
  spans_.resize(kPassTokens);
  span_of_row_.resize(kPassTokens);
  wanted_.resize(kPassTokens);
  last_rows_.resize(kPassTokens);
}

std::optional<Fault> Model::step(const Call& call) {
  std::lock_guard<std::mutex> lock(one_at_a_time_);
  std::atomic<int64_t> fault{kNoFault};
  const Targets* targets = call.targets;
  float* logits = call.logits;
  const int64_t* tokens = call.tokens;
  int64_t limit = targets != nullptr ? kScoredTokens : call.streams > kPromptTokens ? kPassTokens : kPromptTokens;
  int64_t stream = 0, read = 0;   // tokens of the present stream that earlier passes have read
  int64_t begun = 0, target = 0;  // tokens, and targets, that earlier passes had
  num_kept_ = 0;
  while (stream < call.streams) {
    int64_t rows = 0, spans = 0, wanted = 0;
    while (stream < call.streams && rows < limit) {
      int64_t count = std::min(call.counts[stream] - read, limit - rows);
      spans_[spans] = {rows, count, call.slots[stream], read == 0 ? &call.before : &call.after};
      bool ends = read + count == call.counts[stream];
      for (int64_t row = rows; row < rows + count; row++) {
        span_of_row_[row] = static_cast<int32_t>(spans);
        if (targets == nullptr && (call.all_logits || (ends && row == rows + count - 1)))
          wanted_[wanted++] = static_cast<int32_t>(row);
      }
      spans++;
      rows += count;
      read = ends ? 0 : read + count;
      stream += ends ? 1 : 0;
    }
    Pass pass = {rows, spans_.data(), spans, span_of_row_.data(), &call.after, x_, normal_, output_, &fault};
    if (targets == nullptr) {
      Pass last = last_of(pass, wanted);
      run_team(threads_, [&](const Member& member) {
        Context context = context_of(pass, member);
        run(context, last, tokens);
        if (wanted != 0) predict(context, x_, wanted_.data(), wanted, logits);
      });
      logits += wanted * config_.vocab_size;
    } else {
      // The head takes rows of many passes at a time: its matrix is the largest, and few tokens may be targets.
      int64_t first = target;
      for (; target < targets->count && targets->rows[target] < begun + rows; target++)
        if (target == first || targets->rows[target] != targets->rows[target - 1])
          wanted_[wanted++] = static_cast<int32_t>(targets->rows[target] - begun);
      if (num_kept_ + wanted > kPassTokens) {
        run_team(threads_, [&](const Member& member) { score(context_of(pass, member), *targets); });
        num_kept_ = 0;
      }
      Pass last = last_of(pass, wanted);
      run_team(threads_, [&](const Member& member) {
        Context context = context_of(pass, member);
        run(context, last, tokens);
        if (wanted != 0) keep(context, wanted_.data(), wanted);
      });
      for (int64_t i = first; i < target; i++)
        if (i == first || targets->rows[i] != targets->rows[i - 1]) first_target_[num_kept_++] = i;
      first_target_[num_kept_] = target;
      if (stream == call.streams && num_kept_ != 0)
        run_team(threads_, [&](const Member& member) { score(context_of(pass, member), *targets); });
    }
    tokens += rows;
    begun += rows;
  }
  int64_t code = fault.load();
  if (code == kNoFault) return std::nullopt;
  return fault_of(code);
}

Context Model::context_of(const Pass& pass, const Member& member) const {
  return {config_, pass, member, own_[static_cast<size_t>(member.index)], kernels().step};
}

// The last channel mixing is asked for by the rows that give logits, and by the states, which end in the last row of
// each stream: of a prompt, by few.
Pass Model::last_of(const Pass& pass, int64_t wanted) {
  int64_t count = 0;
  for (int64_t i = 0, span = 0; i < wanted || span < pass.num_spans;) {
    int32_t end =
        span < pass.num_spans ? static_cast<int32_t>(pass.spans[span].row + pass.spans[span].count - 1) : INT32_MAX;
    int32_t row = i < wanted ? std::min(wanted_[i], end) : end;
    last_rows_[count++] = row;
    if (i < wanted && wanted_[i] == row) i++;
    if (end == row) span++;
  }
  Pass last = pass;
  last.tokens = count;
  last.rows = count == pass.tokens ? nullptr : last_rows_.data();
  return last;
}

void Model::run(const Context& context, const Pass& last, const int64_t* tokens) {
  embed(context, tokens);
  for (int64_t layer = 0; layer < config_.num_layers; layer++) {
    context.member.barrier();
    time_mixing_->run(context, layer);
    context.member.barrier();
    channel_mixing_->run(layer == config_.num_layers - 1 ? context_of(last, context.member) : context, layer);
  }
  context.member.barrier();
}

void Model::embed(const Context& context, const int64_t* tokens) {
  int64_t D = config_.width;
  Share mine = context.member.share(context.pass.tokens);
  for (int64_t row = mine.begin; row < mine.end; row++) {
    read_row(embedding_, tokens[row], D, context.own.rows[0]);
    context.step.layer_norm(context.own.rows[0], embedding_norm_.weight, embedding_norm_.bias, D, x_ + row * D);
  }
}

void Model::predict(const Context& context, const float* x, const int32_t* rows, int64_t count, float* logits) {
  int64_t D = config_.width;
  Share mine = context.member.share(count);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    context.step.layer_norm(x + rows[i] * D, output_norm_.weight, output_norm_.bias, D, context.own.rows[0]);
    head_input_.convert_columns(head_->type, context.own.rows[0], 0, D, count, i);
  }
  context.member.barrier();
  Share outputs = context.member.share(head_->rows, 4 * kLanes);
  multiply(*head_, head_input_.view(count), logits, head_->rows, outputs.begin, outputs.end, context.own.multiply);
}

void Model::keep(const Context& context, const int32_t* rows, int64_t count) {
  int64_t D = config_.width;
  Share mine = context.member.share(count);
  for (int64_t i = mine.begin; i < mine.end; i++)
    std::memcpy(kept_ + (num_kept_ + i) * D, x_ + rows[i] * D, static_cast<size_t>(D) * 4);
}

void Model::score(const Context& context, const Targets& targets) {
  int64_t N = config_.vocab_size;
  for (int64_t begin = 0; begin < num_kept_; begin += kPromptTokens) {
    int64_t count = std::min(kPromptTokens, num_kept_ - begin);
    // Once all have read the logits of the rows before, and the inputs of the head.
    context.member.barrier();
    predict(context, kept_, kept_rows_.data() + begin, count, targets.logits);
    context.member.barrier();
    Share mine = context.member.share(count);
    for (int64_t i = mine.begin; i < mine.end; i++) {
      const float* logits = targets.logits + i * N;
      int64_t best = kernels().sampling.first_largest(logits, N);
      double total = 0, largest = 0;
      if (best != kNoToken) {
        largest = static_cast<double>(logits[best]);
        total = std::log(context.step.sum_of_exponentials(logits, logits[best], N));
      }
      for (int64_t j = first_target_[begin + i]; j < first_target_[begin + i + 1]; j++) {
        double logit = static_cast<double>(logits[targets.tokens[j]]);
        targets.log_probabilities[j] = best == kNoToken ? std::nan("") : logit - largest - total;
        targets.likeliest[j] = targets.tokens[j] == best ? 1 : 0;
      }
    }
  }
}

}  // namespace rookery
