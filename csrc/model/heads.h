// RWKV-5 and 6: heads whose state forgets, key channel by key channel.
#pragma once

#include "model/pass.h"

namespace rookery {

struct Heads6 {
  const float *r, *k, *v;  // [tokens][attention width]
  const float* gate;       // null in RWKV-5.0
  const float* w;          // the decay itself
  bool w_of_token;         // [tokens][attention width]; else [attention width]
  const float* bonus;      // [attention width]
  Norm norm;
  float epsilon;
  float* y;
};

// Runs the recurrence over the heads of channels [begin, end), and normalises and gates what comes out.
void run_heads_6(const Context& context, int64_t layer, const Heads6& heads, Share channels);

}  // namespace rookery
