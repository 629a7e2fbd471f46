// What a model does between its matrix products and its recurrence, forward and backward, each in one pass over
// memory: token shift, the inputs of RWKV-7's recurrence, what becomes of its output, and the squared ReLU.
//
// The backward passes take the inputs and compute what lies between again: that costs less than to keep it. The
// equations stand in rookery.ops.fused, which has each in plain torch too.
//
// Tokens are shared out among threads in adjoining ranges. A parameter's gradient is a sum over tokens: each range
// makes its own, and these are added up in order, so that the result depends on the number of threads alone.
#pragma once

#include "training.h"

namespace rookery {

constexpr int kMostShifts = 8;

struct TokenShift {
  int64_t batch = 0, tokens = 0, channels = 0;
  int count = 0;                  // of outputs
  bool to_present = false;        // RWKV-4, 5: a weight of 1 gives the present input; else the previous one
  bool varying = false;           // whether each token has weights of its own
  Sequence x;                     // [B, T, D]
  Sequence last;                  // [B, 1, D], before the first token; null: zeros
  Sequence weights[kMostShifts];  // [B, T, D], of strides 0 where they do not vary
  const uint8_t* starts = nullptr;
  Sequence y[kMostShifts];  // outputs; in the backward pass their gradients

  Sequence dx, dlast, dweights[kMostShifts];  // dweights where they vary
  float* sums = nullptr;                      // where they do not: [count, D]
};

enum { kMoved, kKey, kValue, kFirst, kRate, kShare, kInputs7 };       // inputs: w, k, v, v_first, a, and v's share
enum { kDecay0, kRate0, kShare0, kRemovalKey, kRateKey, kVectors7 };  // w0, a0, v0, k_k, k_a
enum { kLogDecay, kWritten, kMixed, kRemoved, kAdded, kResults7 };    // log_w, k, v, -kappa, kappa a

// All inputs and results [B, T, H, K]. v_first and share: null in the first layer, where v is not mixed.
struct Inputs7 {
  Sizes size;
  Sequence inputs[kInputs7], results[kResults7];  // in the backward pass: gradients of the results
  const float* vectors[kVectors7] = {};           // [H K]
  Sequence dinputs[kInputs7];
  float* sums = nullptr;  // [kVectors7, H K]
};

enum { kRead, kReceptance, kWrittenKey, kWrittenValue, kGate, kOutputs7 };  // y, r, k, v, g
enum { kBonus, kWeight, kBias, kOutputVectors7 };                           // r_k and ln_x

struct Output7 {
  Sizes size;
  float epsilon = 0;
  Sequence inputs[kOutputs7], result;  // in the backward pass: the gradient of the result
  const float* vectors[kOutputVectors7] = {};
  Sequence dinputs[kOutputs7];
  float* sums = nullptr;  // [kOutputVectors7, H V]
};

void token_shift_forward(const TokenShift& x, int threads);
void token_shift_backward(const TokenShift& x, int threads);
void inputs7_forward(const Inputs7& x, int threads);
void inputs7_backward(const Inputs7& x, int threads);
void output7_forward(const Output7& x, int threads);
void output7_backward(const Output7& x, int threads);
// y = max(x, 0)^2, n numbers in a run; and dx = 2 sqrt(y) dy: y is kept by the product that reads it, x then by none.
void squared_relu_forward(const Sequence& x, const Sequence& y, int64_t n, int threads);
void squared_relu_backward(const Sequence& y, const Sequence& dy, const Sequence& dx, int64_t n, int threads);

// Tokens (or numbers) [begin, end) of all B T; `sums` are this range's, zero at first.
struct MixingKernels {
  void (*token_shift_forward)(const TokenShift& x, int64_t begin, int64_t end);
  void (*token_shift_backward)(const TokenShift& x, int64_t begin, int64_t end, float* sums);
  void (*inputs7_forward)(const Inputs7& x, int64_t begin, int64_t end);
  void (*inputs7_backward)(const Inputs7& x, int64_t begin, int64_t end, float* sums);
  void (*output7_forward)(const Output7& x, int64_t begin, int64_t end);
  void (*output7_backward)(const Output7& x, int64_t begin, int64_t end, float* sums);
  void (*squared_relu_forward)(const Sequence& x, const Sequence& y, int64_t begin, int64_t end);
  void (*squared_relu_backward)(const Sequence& y, const Sequence& dy, const Sequence& dx, int64_t begin, int64_t end);
};

}  // namespace rookery
