// RWKV-7: the generalised delta rule (src/rookery/models/rwkv7.py).
//
//     w = decay(w0 + W2 tanh(W1 x_w))     a = sigmoid(a0 + A2 A1 x_a)     g = G2 sigmoid(G1 x_g)
//     v = v + (v_first - v) sigmoid(v0 + V2 V1 x_v)                       above layer 0
//     o = W_o ((norm(wkv(r, w, k, v, a)) + bonus) * g)
#include "model/mixing.h"

namespace rookery {
namespace {

class TimeMixing7 final : public TimeMixing {
 public:
  TimeMixing7(const Config& config, const Weights& weights, Scratch& scratch) {
    int64_t D = config.width, A = config.attention_width;
    for (OperandBuffer& input : inputs_) input = scratch.input(D);
    for (int i = 0; i < kLowRanks; i++) {
      int64_t rank = rank_of(config, i);
      hidden_[i] = scratch.floats(rank);
      hidden_input_[i] = scratch.input(rank);
      moved_[i] = scratch.floats(A);
    }
    output_input_ = scratch.input(A);
    r_ = scratch.floats(A);
    k_ = scratch.floats(A);
    v_ = scratch.floats(A);
    v_first_ = scratch.floats(A);
    y_ = scratch.floats(A);
    for (int64_t layer = 0; layer < config.num_layers; layer++) {
      auto name = [&](const char* leaf) { return name_of(layer, leaf); };
      Layer own = {
          .norm = weights.norm(name("ln1"), D),
          .head_norm = weights.norm(name("att.ln_x"), A),
          .shifts = {},
          .w0 = weights.vector(name("att.w0"), A),
          .a0 = weights.vector(name("att.a0"), A),
          .v0 = layer == 0 ? nullptr : weights.vector(name("att.v0"), A),
          .k_k = weights.vector(name("att.k_k"), A),
          .k_a = weights.vector(name("att.k_a"), A),
          .r_k = weights.vector(name("att.r_k"), A),
          .down = {},
          .up = {},
          .receptance = weights.matrix(name("att.receptance"), A, D),
          .key = weights.matrix(name("att.key"), A, D),
          .value = weights.matrix(name("att.value"), A, D),
          .output = weights.matrix(name("att.output"), D, A),
      };
      for (int i = 0; i < 6; i++) own.shifts[i] = weights.vector(name("att.shift_") + "rkvwag"[i], D);
      for (int i = 0; i < kLowRanks; i++) {
        if (i == kMoveV && layer == 0) continue;
        std::string letter(1, "wagv"[i]);
        own.down[i] = weights.matrix(name("att.") + letter + "1", rank_of(config, i), D);
        own.up[i] = weights.matrix(name("att.") + letter + "2", A, rank_of(config, i));
      }
      layers_.push_back(own);
    }
  }

  void run(const Context& context, int64_t layer) const override {
    const Layer& own = layers_[static_cast<size_t>(layer)];
    int low_ranks = layer == 0 ? kLowRanks - 1 : kLowRanks;
    float* v = layer == 0 ? v_first_ : v_;
    const Matrix* matrices[3] = {own.receptance, own.key, own.value};
    float* outputs[3] = {r_, k_, v};
    Shifted inputs[7];
    Job jobs[7];
    int count = 0;
    for (int i = 0; i < 3; i++) {
      inputs[count] = {own.shifts[i], &inputs_[i], matrices[i]->type};
      jobs[count++] = {matrices[i], &inputs_[i], outputs[i]};
    }
    int num_inputs = count;
    for (int i = 0; i < low_ranks; i++) {
      const OperandBuffer* input = &inputs_[3 + i];
      if (i == kMoveV && own.down[i]->type == own.value->type)
        input = &inputs_[2];  // the value's own
      else
        inputs[num_inputs++] = {own.shifts[i == kMoveV ? 2 : 3 + i], input, own.down[i]->type};
      jobs[count++] = {own.down[i], input, hidden_[i], kActivation[i], &hidden_input_[i], own.up[i]->type};
    }
    shift(context, Part::time_shift, layer, own.norm, inputs, num_inputs);
    context.member.barrier();

    keep_shift(context, Part::time_shift, layer);
    run_jobs(context, jobs, count);
    context.member.barrier();

    Share mine = share_heads(context);
    for (int i = 0; i < low_ranks; i++)
      multiply_rows(context, *own.up[i], hidden_input_[i], moved_[i], mine.begin, mine.end);
    for (int64_t first = mine.begin; first < mine.end; first += context.config.head_size)
      for (int64_t i = 0; i < context.pass.num_spans; i++)
        run_head(context, layer, own, v, first, context.pass.spans[i]);
    convert_columns(context, output_input_, own.output->type, y_, context.config.attention_width, mine.begin, mine.end);
    context.member.barrier();

    add_output(context, *own.output, output_input_);
  }

 private:
  // What the data moves: the decay, the learning rate, the gate, the share of v_first (not in layer 0).
  enum LowRank { kMoveW, kMoveA, kMoveG, kMoveV, kLowRanks };
  static constexpr Activation kActivation[kLowRanks] = {Activation::tanh, Activation::none, Activation::sigmoid,
                                                        Activation::none};

  struct Layer {
    Norm norm, head_norm;
    const float* shifts[6];  // r, k, v, w, a, g
    const float *w0, *a0, *v0, *k_k, *k_a, *r_k;
    const Matrix *down[kLowRanks], *up[kLowRanks];
    const Matrix *receptance, *key, *value, *output;
  };

  static int64_t rank_of(const Config& config, int low_rank) {
    const int64_t ranks[] = {config.decay_rank, config.iclr_rank, config.gate_rank, config.value_rank};
    return ranks[low_rank];
  }

  void run_head(const Context& context, int64_t layer, const Layer& own, float* v, int64_t first,
                const Span& span) const {
    int64_t A = context.config.attention_width, K = context.config.head_size, at = span.row * A + first;
    Head7 head = {
        .tokens = span.count,
        .size = K,
        .stride = A,
        .r = r_ + at,
        .k = k_ + at,
        .v = v + at,
        .w = moved_[kMoveW] + at,
        .a = moved_[kMoveA] + at,
        .b = moved_[kMoveV] + at,
        .w0 = own.w0 + first,
        .a0 = own.a0 + first,
        .v0 = own.v0 == nullptr ? nullptr : own.v0 + first,
        .k_k = own.k_k + first,
        .k_a = own.k_a + first,
        .v_first = v_first_ + at,
        .state_in = context.before(Part::wkv, layer, span) + first * K,
        .state_out = context.after(Part::wkv, layer, span) + first * K,
        .y = y_ + at,
    };
    context.step.prepare7(head);
    context.step.wkv7(head);
    bool finite = context.step.end_head({
        .tokens = span.count,
        .size = K,
        .stride = A,
        .y = y_ + at,
        .weight = own.head_norm.weight + first,
        .bias = own.head_norm.bias + first,
        .epsilon = 64e-5f,
        .gate = moved_[kMoveG] + at,
        .silu = false,
        .r_k = own.r_k + first,
        .r = head.r,
        .k = head.k,
        .v = head.v,
    });
    if (!finite) context.report(Part::wkv, layer, span);
  }

  std::vector<Layer> layers_;
  OperandBuffer inputs_[7], hidden_input_[kLowRanks], output_input_;
  float *hidden_[kLowRanks], *moved_[kLowRanks];
  float *r_, *k_, *v_, *v_first_, *y_;
};

}  // namespace

std::unique_ptr<TimeMixing> make_time_mixing_7(const Config& config, const Weights& weights, Scratch& scratch) {
  return std::make_unique<TimeMixing7>(config, weights, scratch);
}

}  // namespace rookery
