// What a step of a model computes between its matrices: norms, mixing with the token before, gates, recurrences.
//
// Values of several tokens lie as [tokens][channels], with `stride` floats from one token to the next. The
// recurrences are described in src/rookery/ops; those here are for inference, one head at a time, token after token.
#pragma once

#include <cstdint>

namespace rookery {

// RWKV-4: `channels` channels of a stream. Gated by r at the end.
struct Channels4 {
  int64_t tokens, channels, stride;
  const float *r, *k, *v;
  const float *log_decay, *bonus;
  const float* state_in;  // [3][state_stride]: numerator, denominator, running maximum
  float* state_out;       // may be state_in
  int64_t state_stride;
  float* y;
};

// RWKV-5 and 6: one head of a stream.
struct Head6 {
  int64_t tokens, size, stride;
  const float *r, *k, *v;
  const float* w;    // the decay itself, not its logarithm
  int64_t w_stride;  // 0 where all tokens have the same
  const float* bonus;
  const float* state_in;  // [size][size]: a row for each key channel
  float* state_out;       // may be state_in
  float* y;
};

// RWKV-7: one head of a stream. `prepare7` makes what the recurrence takes of what the matrices gave, in place.
struct Head7 {
  int64_t tokens, size, stride;
  const float* r;
  float* k;  // in: key; out: the key to be written
  float* v;  // in: value; out: mixed with v_first
  float* w;  // in: what moves the decay; out: the decay
  float* a;  // in: what moves the learning rate; out: minus the key to be removed
  float* b;  // in: what moves the share of v_first; out: the key to be removed times the learning rate
  const float *w0, *a0, *v0, *k_k, *k_a;  // v0 null in layer 0, whose values are v_first
  const float* v_first;
  const float* state_in;
  float* state_out;
  float* y;
};

// The end of a head: y = (norm(y) + bonus) * gate, in place.
struct HeadEnd {
  int64_t tokens, size, stride;
  float* y;
  const float *weight, *bias;
  float epsilon;
  const float* gate;  // null: none
  bool silu;          // the gate is x sigmoid(x) of it; else it is the gate itself
  const float* r_k;   // RWKV-7's bonus is (r . (k r_k)) v; null: none
  const float *r, *k, *v;
};

struct StepKernels {
  bool (*finite)(const float* x, int64_t n);
  // The sum of e^(x - largest), for largest no less than any x.
  double (*sum_of_exponentials)(const float* x, float largest, int64_t n);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t n, float* y);
  // y = x + (previous - x) * weight.
  void (*interpolate)(const float* x, const float* previous, const float* weight, int64_t n, float* y);
  // y = x + (previous - x) * (weight + moved), y may be moved.
  void (*interpolate_moved)(const float* x, const float* previous, const float* weight, const float* moved, int64_t n,
                            float* y);
  void (*tanh)(float* x, int64_t n);
  void (*sigmoid)(float* x, int64_t n);
  void (*squared_relu)(float* x, int64_t n);
  // x += y, and x += sigmoid(gate) * y.
  void (*add)(float* x, const float* y, int64_t n);
  void (*add_gated)(float* x, const float* gate, const float* y, int64_t n);
  // w = exp(-exp(base + w)).
  void (*decay6)(float* w, const float* base, int64_t n);
  void (*wkv4)(const Channels4& channels);
  void (*wkv6)(const Head6& head);
  void (*prepare7)(const Head7& head);
  void (*wkv7)(const Head7& head);
  // Returns whether all of y was finite before the norm: with NaN in a state it is not.
  bool (*end_head)(const HeadEnd& end);
};

}  // namespace rookery
