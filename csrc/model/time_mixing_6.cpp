// RWKV-6: RWKV-5.2 whose token shift and decay depend on the data (src/rookery/models/rwkv6.py).
//
//     m_i   = tanh(W1_i (x + s maa_x))               s = previous x - x;  i = w, k, v, r, g
//     x_i   = x + s (maa_i + W2_i m_i)
//     w     = exp(-exp(time_decay + D2 tanh(D1 x_w)))
#include "model/heads.h"
#include "model/mixing.h"

namespace rookery {
namespace {

constexpr int kMixed = 5;
enum Input { kW, kK, kV, kR, kG };

class TimeMixing6 final : public TimeMixing {
 public:
  TimeMixing6(const Config& config, const Weights& weights, Scratch& scratch) {
    int64_t D = config.width, A = config.attention_width, E = config.mix_rank, G = config.decay_rank;
    hint_input_ = scratch.input(D);
    for (int i = 0; i < kMixed; i++) {
      hidden_[i] = scratch.floats(E);
      hidden_input_[i] = scratch.input(E);
      mixed_[i] = scratch.floats(D);
      inputs_[i] = scratch.input(D);
    }
    decay_hidden_ = scratch.floats(G);
    decay_input_ = scratch.input(G);
    output_input_ = scratch.input(A);
    r_ = scratch.floats(A);
    w_ = scratch.floats(A);
    k_ = scratch.floats(A);
    v_ = scratch.floats(A);
    gate_ = scratch.floats(A);
    y_ = scratch.floats(A);
    for (int64_t layer = 0; layer < config.num_layers; layer++) {
      auto name = [&](const char* leaf) { return name_of(layer, leaf); };
      Layer own = {
          .norm = weights.norm(name("ln1"), D),
          .head_norm = weights.norm(name("att.ln_x"), A),
          .shift_x = weights.vector(name("att.shift_x"), D),
          .shifts = {},
          .time_decay = weights.vector(name("att.time_decay"), A),
          .bonus = weights.vector(name("att.bonus"), A),
          .mix_down = {},
          .mix_up = {},
          .decay_down = weights.matrix(name("att.time_decay_w1"), G, D),
          .decay_up = weights.matrix(name("att.time_decay_w2"), A, G),
          .receptance = weights.matrix(name("att.receptance"), A, D),
          .key = weights.matrix(name("att.key"), A, D),
          .value = weights.matrix(name("att.value"), A, D),
          .gate = weights.matrix(name("att.gate"), A, D),
          .output = weights.matrix(name("att.output"), D, A),
      };
      for (int i = 0; i < kMixed; i++) {
        std::string letter(1, "wkvrg"[i]), number = std::to_string(i);
        own.shifts[i] = weights.vector(name("att.shift_") + letter, D);
        own.mix_down[i] = weights.matrix(name("att.time_maa_w1.") + number, E, D);
        own.mix_up[i] = weights.matrix(name("att.time_maa_w2.") + number, D, E);
      }
      layers_.push_back(own);
    }
  }

  void run(const Context& context, int64_t layer) const override {
    const Layer& own = layers_[static_cast<size_t>(layer)];
    const Shifted hint = {own.shift_x, &hint_input_, own.mix_down[0]->type};
    shift(context, Part::time_shift, layer, own.norm, &hint, 1);
    context.member.barrier();

    Job downs[kMixed];
    for (int i = 0; i < kMixed; i++)
      downs[i] = {own.mix_down[i], &hint_input_, hidden_[i], Activation::tanh, &hidden_input_[i], own.mix_up[i]->type};
    run_jobs(context, downs, kMixed);
    context.member.barrier();

    mix(context, layer, own);
    context.member.barrier();

    keep_shift(context, Part::time_shift, layer);
    const Job jobs[] = {
        {own.receptance, &inputs_[kR], r_},
        {own.key, &inputs_[kK], k_},
        {own.value, &inputs_[kV], v_},
        {own.gate, &inputs_[kG], gate_},
        {own.decay_down, &inputs_[kW], decay_hidden_, Activation::tanh, &decay_input_, own.decay_up->type},
    };
    run_jobs(context, jobs, 5);
    context.member.barrier();

    recur(context, layer, own);
    context.member.barrier();

    add_output(context, *own.output, output_input_);
  }

 private:
  struct Layer {
    Norm norm, head_norm;
    const float* shift_x;
    const float* shifts[kMixed];
    const float *time_decay, *bonus;
    const Matrix *mix_down[kMixed], *mix_up[kMixed];
    const Matrix *decay_down, *decay_up, *receptance, *key, *value, *gate, *output;
  };

  // The five shifted inputs, in this member's channels.
  void mix(const Context& context, int64_t layer, const Layer& own) const {
    const Pass& pass = context.pass;
    int64_t D = context.config.width;
    Share mine = context.member.share(D, kBlock);
    if (mine.begin == mine.end) return;
    const Matrix* consumers[kMixed] = {own.decay_down, own.key, own.value, own.receptance, own.gate};
    for (int i = 0; i < kMixed; i++) {
      multiply_rows(context, *own.mix_up[i], hidden_input_[i], mixed_[i], mine.begin, mine.end);
      for (int64_t row = 0; row < pass.tokens; row++) {
        float* x = mixed_[i] + row * D;
        context.step.interpolate_moved(
            pass.normal + row * D + mine.begin, previous(context, Part::time_shift, layer, row) + mine.begin,
            own.shifts[i] + mine.begin, x + mine.begin, mine.end - mine.begin, x + mine.begin);
        inputs_[i].convert_columns(consumers[i]->type, x, mine.begin, mine.end, pass.tokens, row);
      }
    }
  }

  void recur(const Context& context, int64_t layer, const Layer& own) const {
    int64_t A = context.config.attention_width;
    Share mine = share_heads(context);
    multiply_rows(context, *own.decay_up, decay_input_, w_, mine.begin, mine.end);
    for (int64_t row = 0; row < context.pass.tokens; row++)
      context.step.decay6(w_ + row * A + mine.begin, own.time_decay + mine.begin, mine.end - mine.begin);
    run_heads_6(context, layer,
                {.r = r_,
                 .k = k_,
                 .v = v_,
                 .gate = gate_,
                 .w = w_,
                 .w_of_token = true,
                 .bonus = own.bonus,
                 .norm = own.head_norm,
                 .epsilon = 64e-5f,
                 .y = y_},
                mine);
    convert_columns(context, output_input_, own.output->type, y_, A, mine.begin, mine.end);
  }

  std::vector<Layer> layers_;
  OperandBuffer hint_input_, hidden_input_[kMixed], inputs_[kMixed], decay_input_, output_input_;
  float *hidden_[kMixed], *mixed_[kMixed], *decay_hidden_;
  float *r_, *w_, *k_, *v_, *gate_, *y_;
};

}  // namespace

std::unique_ptr<TimeMixing> make_time_mixing_6(const Config& config, const Weights& weights, Scratch& scratch) {
  return std::make_unique<TimeMixing6>(config, weights, scratch);
}

}  // namespace rookery
