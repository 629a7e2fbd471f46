// RWKV-5.0, 5.1 and 5.2: o = W_o (norm(wkv(r, k, v)) * silu(g)), 5.0 without g (src/rookery/models/rwkv5.py).
#include "model/heads.h"
#include "model/mixing.h"

namespace rookery {

void run_heads_6(const Context& context, int64_t layer, const Heads6& heads, Share channels) {
  int64_t A = context.config.attention_width, K = context.config.head_size;
  for (int64_t first = channels.begin; first < channels.end; first += K)
    for (int64_t i = 0; i < context.pass.num_spans; i++) {
      const Span& span = context.pass.spans[i];
      int64_t at = span.row * A + first;
      context.step.wkv6({
          .tokens = span.count,
          .size = K,
          .stride = A,
          .r = heads.r + at,
          .k = heads.k + at,
          .v = heads.v + at,
          .w = heads.w + (heads.w_of_token ? at : first),
          .w_stride = heads.w_of_token ? A : 0,
          .bonus = heads.bonus + first,
          .state_in = context.before(Part::wkv, layer, span) + first * K,
          .state_out = context.after(Part::wkv, layer, span) + first * K,
          .y = heads.y + at,
      });
      bool finite = context.step.end_head({
          .tokens = span.count,
          .size = K,
          .stride = A,
          .y = heads.y + at,
          .weight = heads.norm.weight + first,
          .bias = heads.norm.bias + first,
          .epsilon = heads.epsilon,
          .gate = heads.gate == nullptr ? nullptr : heads.gate + at,
          .silu = true,
          .r_k = nullptr,
          .r = nullptr,
          .k = nullptr,
          .v = nullptr,
      });
      if (!finite) context.report(Part::wkv, layer, span);
    }
}

namespace {

class TimeMixing5 final : public TimeMixing {
 public:
  TimeMixing5(const Config& config, const Weights& weights, Scratch& scratch)
      : gated_(config.version != Version::v5_0), epsilon_(config.version == Version::v5_0 ? 1e-5f : 64e-5f) {
    int64_t D = config.width, A = config.attention_width;
    for (OperandBuffer& input : inputs_) input = scratch.input(D);
    output_input_ = scratch.input(A);
    r_ = scratch.floats(A);
    k_ = scratch.floats(A);
    v_ = scratch.floats(A);
    gate_ = scratch.floats(A);
    y_ = scratch.floats(A);
    for (int64_t layer = 0; layer < config.num_layers; layer++) {
      auto name = [&](const char* leaf) { return name_of(layer, leaf); };
      layers_.push_back({
          .norm = weights.norm(name("ln1"), D),
          .head_norm = weights.norm(name("att.ln_x"), A),
          .shift_r = weights.vector(name("att.shift_r"), D),
          .shift_k = weights.vector(name("att.shift_k"), D),
          .shift_v = weights.vector(name("att.shift_v"), D),
          .shift_g = gated_ ? weights.vector(name("att.shift_g"), D) : nullptr,
          .decay = weights.vector(name("att.decay"), A),
          .bonus = weights.vector(name("att.bonus"), A),
          .receptance = weights.matrix(name("att.receptance"), A, D),
          .key = weights.matrix(name("att.key"), A, D),
          .value = weights.matrix(name("att.value"), A, D),
          .gate = gated_ ? weights.matrix(name("att.gate"), A, D) : nullptr,
          .output = weights.matrix(name("att.output"), D, A),
      });
    }
  }

  void run(const Context& context, int64_t layer) const override {
    const Layer& own = layers_[static_cast<size_t>(layer)];
    int count = gated_ ? 4 : 3;
    Shifted inputs[4] = {{own.shift_r, &inputs_[0], own.receptance->type},
                         {own.shift_k, &inputs_[1], own.key->type},
                         {own.shift_v, &inputs_[2], own.value->type}};
    Job jobs[4] = {{own.receptance, &inputs_[0], r_}, {own.key, &inputs_[1], k_}, {own.value, &inputs_[2], v_}};
    if (gated_) {
      inputs[3] = {own.shift_g, &inputs_[3], own.gate->type};
      jobs[3] = {own.gate, &inputs_[3], gate_};
    }
    shift(context, Part::time_shift, layer, own.norm, inputs, count);
    context.member.barrier();

    keep_shift(context, Part::time_shift, layer);
    run_jobs(context, jobs, count);
    context.member.barrier();

    Share mine = share_heads(context);
    run_heads_6(context, layer,
                {.r = r_,
                 .k = k_,
                 .v = v_,
                 .gate = gated_ ? gate_ : nullptr,
                 .w = own.decay,
                 .w_of_token = false,
                 .bonus = own.bonus,
                 .norm = own.head_norm,
                 .epsilon = epsilon_,
                 .y = y_},
                mine);
    convert_columns(context, output_input_, own.output->type, y_, context.config.attention_width, mine.begin, mine.end);
    context.member.barrier();

    add_output(context, *own.output, output_input_);
  }

 private:
  struct Layer {
    Norm norm, head_norm;
    const float *shift_r, *shift_k, *shift_v, *shift_g, *decay, *bonus;
    const Matrix *receptance, *key, *value, *gate, *output;
  };

  bool gated_;
  float epsilon_;
  std::vector<Layer> layers_;
  OperandBuffer inputs_[4], output_input_;
  float *r_, *k_, *v_, *gate_, *y_;
};

}  // namespace

std::unique_ptr<TimeMixing> make_time_mixing_5(const Config& config, const Weights& weights, Scratch& scratch) {
  return std::make_unique<TimeMixing5>(config, weights, scratch);
}

}  // namespace rookery
