// RWKV-4: o = W_o (sigmoid(r) * wkv(k, v)), channel by channel (src/rookery/models/rwkv4.py).
#include "model/mixing.h"

namespace rookery {
namespace {

class TimeMixing4 final : public TimeMixing {
 public:
  TimeMixing4(const Config& config, const Weights& weights, Scratch& scratch) {
    int64_t D = config.width, A = config.attention_width;
    for (OperandBuffer& input : inputs_) input = scratch.input(D);
    output_input_ = scratch.input(A);
    r_ = scratch.floats(A);
    k_ = scratch.floats(A);
    v_ = scratch.floats(A);
    y_ = scratch.floats(A);
    for (int64_t layer = 0; layer < config.num_layers; layer++) {
      auto name = [&](const char* leaf) { return name_of(layer, leaf); };
      layers_.push_back({
          .norm = weights.norm(name("ln1"), D),
          .shift_r = weights.vector(name("att.shift_r"), D),
          .shift_k = weights.vector(name("att.shift_k"), D),
          .shift_v = weights.vector(name("att.shift_v"), D),
          .log_decay = weights.vector(name("att.log_decay"), A),
          .bonus = weights.vector(name("att.bonus"), A),
          .receptance = weights.matrix(name("att.receptance"), A, D),
          .key = weights.matrix(name("att.key"), A, D),
          .value = weights.matrix(name("att.value"), A, D),
          .output = weights.matrix(name("att.output"), D, A),
      });
    }
  }

  void run(const Context& context, int64_t layer) const override {
    const Layer& own = layers_[static_cast<size_t>(layer)];
    const Shifted inputs[] = {{own.shift_r, &inputs_[0], own.receptance->type},
                              {own.shift_k, &inputs_[1], own.key->type},
                              {own.shift_v, &inputs_[2], own.value->type}};
    shift(context, Part::time_shift, layer, own.norm, inputs, 3);
    context.member.barrier();

    keep_shift(context, Part::time_shift, layer);
    const Job jobs[] = {{own.receptance, &inputs_[0], r_}, {own.key, &inputs_[1], k_}, {own.value, &inputs_[2], v_}};
    run_jobs(context, jobs, 3);
    context.member.barrier();

    recur(context, layer, own);
    context.member.barrier();

    add_output(context, *own.output, output_input_);
  }

 private:
  struct Layer {
    Norm norm;
    const float *shift_r, *shift_k, *shift_v, *log_decay, *bonus;
    const Matrix *receptance, *key, *value, *output;
  };

  void recur(const Context& context, int64_t layer, const Layer& own) const {
    int64_t A = context.config.attention_width;
    Share mine = share_heads(context);
    if (mine.begin == mine.end) return;
    for (int64_t i = 0; i < context.pass.num_spans; i++) {
      const Span& span = context.pass.spans[i];
      const float* before = context.before(Part::wkv, layer, span) + mine.begin;
      int64_t channels = mine.end - mine.begin, at = span.row * A + mine.begin;
      for (int part = 0; part < 3; part++)
        if (!context.step.finite(before + part * A, channels)) context.report(Part::wkv, layer, span);
      context.step.wkv4({
          .tokens = span.count,
          .channels = channels,
          .stride = A,
          .r = r_ + at,
          .k = k_ + at,
          .v = v_ + at,
          .log_decay = own.log_decay + mine.begin,
          .bonus = own.bonus + mine.begin,
          .state_in = before,
          .state_out = context.after(Part::wkv, layer, span) + mine.begin,
          .state_stride = A,
          .y = y_ + at,
      });
    }
    convert_columns(context, output_input_, own.output->type, y_, A, mine.begin, mine.end);
  }

  std::vector<Layer> layers_;
  OperandBuffer inputs_[3], output_input_;
  float *r_, *k_, *v_, *y_;
};

}  // namespace

std::unique_ptr<TimeMixing> make_time_mixing_4(const Config& config, const Weights& weights, Scratch& scratch) {
  return std::make_unique<TimeMixing4>(config, weights, scratch);
}

}  // namespace rookery
