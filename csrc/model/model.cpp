#include "model/model.h"

#include <algorithm>
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
}

std::optional<Fault> Model::step(const Call& call) {
  std::lock_guard<std::mutex> lock(one_at_a_time_);
  std::atomic<int64_t> fault{kNoFault};
  float* logits = call.logits;
  const int64_t* tokens = call.tokens;
  int64_t limit = call.streams > kPromptTokens ? kPassTokens : kPromptTokens;
  int64_t stream = 0, read = 0;  // tokens of the present stream that earlier passes have read
  while (stream < call.streams) {
    int64_t rows = 0, spans = 0, wanted = 0;
    while (stream < call.streams && rows < limit) {
      int64_t count = std::min(call.counts[stream] - read, limit - rows);
      spans_[spans] = {rows, count, call.slots[stream], read == 0 ? &call.before : &call.after};
      bool ends = read + count == call.counts[stream];
      for (int64_t row = rows; row < rows + count; row++) {
        span_of_row_[row] = static_cast<int32_t>(spans);
        if (call.all_logits || (ends && row == rows + count - 1)) wanted_[wanted++] = static_cast<int32_t>(row);
      }
      spans++;
      rows += count;
      read = ends ? 0 : read + count;
      stream += ends ? 1 : 0;
    }
    Pass pass = {rows, spans_.data(), spans, span_of_row_.data(), &call.after, x_, normal_, output_, &fault};
    run_team(threads_, [&](const Member& member) { run(pass, tokens, wanted_.data(), wanted, logits, member); });
    tokens += rows;
    logits += wanted * config_.vocab_size;
  }
  int64_t code = fault.load();
  if (code == kNoFault) return std::nullopt;
  return fault_of(code);
}

void Model::run(const Pass& pass, const int64_t* tokens, const int32_t* wanted, int64_t num_wanted, float* logits,
                const Member& member) {
  Context context = {config_, pass, member, own_[static_cast<size_t>(member.index)], kernels().step};
  embed(context, tokens);
  for (int64_t layer = 0; layer < config_.num_layers; layer++) {
    member.barrier();
    time_mixing_->run(context, layer);
    member.barrier();
    channel_mixing_->run(context, layer);
  }
  if (num_wanted == 0) return;
  member.barrier();
  predict(context, wanted, num_wanted, logits);
}

void Model::embed(const Context& context, const int64_t* tokens) {
  int64_t D = config_.width;
  Share mine = context.member.share(context.pass.tokens);
  for (int64_t row = mine.begin; row < mine.end; row++) {
    read_row(embedding_, tokens[row], D, context.own.rows[0]);
    context.step.layer_norm(context.own.rows[0], embedding_norm_.weight, embedding_norm_.bias, D, x_ + row * D);
  }
}

void Model::predict(const Context& context, const int32_t* wanted, int64_t num_wanted, float* logits) {
  int64_t D = config_.width;
  Share mine = context.member.share(num_wanted);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    context.step.layer_norm(x_ + wanted[i] * D, output_norm_.weight, output_norm_.bias, D, context.own.rows[0]);
    head_input_.convert_columns(head_->type, context.own.rows[0], 0, D, num_wanted, i);
  }
  context.member.barrier();
  Share rows = context.member.share(head_->rows, 4 * kLanes);
  multiply(*head_, head_input_.view(num_wanted), logits, head_->rows, rows.begin, rows.end, context.own.multiply);
}

}  // namespace rookery
