// RWKV-4, forward and backward: sixteen channels in lanes, which do not depend on each other.
//
// The largest exponent p is a sum of many decays and one key. As a float it would be rounded at each token, always
// the same way, and a thousand tokens would put the gradient of log_w off by 1e-3: so it is a sum of two floats.
#pragma once

#include "kernels/sequences.h"

namespace rookery::ROOKERY_LANES {
namespace {

constexpr float kNoMaximum = -1e30f;

// A sum of two floats, the second one of the order of the first one's rounding.
struct Exponent {
  Floats high, low;
};

ROOKERY_INLINE Exponent plus(Exponent p, Floats x) {
  Floats high = p.high + x, part = high - p.high;
  Floats error = (p.high - (high - part)) + (x - part) + p.low;
  Floats sum = high + error;
  return {sum, error - (sum - high)};
}

struct Averages {
  Floats a, b;
  Exponent p;
};

// Two exponents p and q as factors e^(p - m) and e^(q - m), m the larger one; `first` is positive where that is p.
struct Factors {
  Floats past, present, first;
};

ROOKERY_INLINE Factors factors(Exponent p, Floats q) {
  Floats difference = (p.high - q) + p.low;
  return {exp(min(difference, zero())), exp(min(-difference, zero())), difference};
}

// A token's way into the state and to the output.
struct ChannelStep {
  Floats a, b;            // before the token
  Factors in, out;        // into the state; to the output
  Floats y, denominator;  // of the output
};

ROOKERY_INLINE ChannelStep step_channels(Averages& s, Floats log_w, Floats u, Floats k, Floats v) {
  ChannelStep step{.a = s.a, .b = s.b, .in = {}, .out = {}, .y = {}, .denominator = {}};
  // u + k rounded once: where the state's exponent is near it, the difference is exact.
  Exponent without_u = plus(s.p, -u);
  step.out = factors(without_u, k);
  step.denominator = fma(step.out.past, s.b, step.out.present);
  step.y = fma(step.out.past, s.a, step.out.present * v) / step.denominator;

  Exponent decayed = plus(s.p, log_w);
  step.in = factors(decayed, k);
  s.a = fma(step.in.past, s.a, step.in.present * v);
  s.b = fma(step.in.past, s.b, step.in.present);
  s.p = {where_positive(step.in.first, decayed.high, k), where_positive(step.in.first, decayed.low, zero())};
  return step;
}

ROOKERY_INLINE Averages no_averages() { return {zero(), zero(), {broadcast(kNoMaximum), zero()}}; }

void forward_channels(const ChannelsInput& x, const ChannelsOutput& out, int64_t b, int64_t channel) {
  const int64_t A = x.channels, T = x.tokens, left = A - channel;
  const float* state = x.state + b * 3 * A + channel;
  Floats log_w = load_left(x.log_w + channel, left), u = load_left(x.u + channel, left);
  Averages s = {load_left(state, left), load_left(state + A, left), {load_left(state + 2 * A, left), zero()}};
  for (int64_t t = 0; t < T; t++) {
    if (x.starts != nullptr && x.starts[b * T + t] != 0) s = no_averages();
    if (out.kept != nullptr && t % kChunkTokens == 0) {
      float* kept = out.kept + (b * x.chunks() + t / kChunkTokens) * 4 * A + channel;
      store_left(kept, s.a, left);
      store_left(kept + A, s.b, left);
      store_left(kept + 2 * A, s.p.high, left);
      store_left(kept + 3 * A, s.p.low, left);
    }
    Floats k = read(x.k, x.k.at(b, t, 0) + channel, left), v = read(x.v, x.v.at(b, t, 0) + channel, left);
    write(out.y, out.y.at(b, t, 0) + channel, step_channels(s, log_w, u, k, v).y, left);
  }
  float* after = out.state + b * 3 * A + channel;
  store_left(after, s.a, left);
  store_left(after + A, s.b, left);
  store_left(after + 2 * A, s.p.high, left);
}

// Neither y nor what the state means depends on p: with the gradients da, db of the scaled sums, the exponents can
// be taken as constants but for what each belongs to. What the state after the last token shows of p itself, dp,
// goes to the key that is the largest, through the decays since.
void backward_channels(const ChannelsInput& x, const ChannelsGradients& grad, int64_t b, int64_t channel) {
  const int64_t A = x.channels, T = x.tokens, left = A - channel;
  Floats log_w = load_left(x.log_w + channel, left), u = load_left(x.u + channel, left);
  Floats da = zero(), db = zero(), dp = zero(), dlog_w = zero(), du = zero();
  bool last = true;
  if (grad.dstate_after != nullptr) {
    const float* d = grad.dstate_after + b * 3 * A + channel;
    da = load_left(d, left);
    db = load_left(d + A, left);
    dp = load_left(d + 2 * A, left);
  }
  Averages s;
  for (int64_t chunk = x.chunks() - 1; chunk >= 0; chunk--) {
    const int64_t t0 = chunk * kChunkTokens, tokens = T - t0 < kChunkTokens ? T - t0 : kChunkTokens;
    const float* kept = grad.kept + (b * x.chunks() + chunk) * 4 * A + channel;
    const uint8_t* starts = x.starts == nullptr ? nullptr : x.starts + b * T + t0;
    s = {load_left(kept, left),
         load_left(kept + A, left),
         {load_left(kept + 2 * A, left), load_left(kept + 3 * A, left)}};
    ChannelStep steps[kChunkTokens];
    Floats v[kChunkTokens];
    for (int64_t t = 0; t < tokens; t++) {
      if (starts != nullptr && starts[t] != 0) s = no_averages();
      v[t] = read(x.v, x.v.at(b, t0 + t, 0) + channel, left);
      steps[t] = step_channels(s, log_w, u, read(x.k, x.k.at(b, t0 + t, 0) + channel, left), v[t]);
    }
    // The scaled sums a = A e^-p depend on p.
    if (last) dp = dp - da * s.a - db * s.b;
    last = false;
    for (int64_t t = tokens - 1; t >= 0; t--) {
      const ChannelStep& step = steps[t];
      Floats dy = read(grad.dy, grad.dy.at(b, t0 + t, 0) + channel, left);
      Floats dnumerator = dy / step.denominator, through = da * v[t] + db;
      Floats own = dnumerator * (v[t] - step.y) * step.out.present, key = through * step.in.present;
      Floats decay = step.in.past * (da * step.a + db * step.b);
      du = du + own;
      dlog_w = dlog_w + decay + where_positive(step.in.first, dp, zero());
      Floats dk = own + key + where_positive(step.in.first, zero(), dp);
      write(grad.dk, grad.dk.at(b, t0 + t, 0) + channel, dk, left);
      write(grad.dv, grad.dv.at(b, t0 + t, 0) + channel, fma(dnumerator, step.out.present, da * step.in.present), left);
      dp = where_positive(step.in.first, dp, zero());
      da = fma(da, step.in.past, dnumerator * step.out.past);
      db = fma(db, step.in.past, zero() - dnumerator * step.y * step.out.past);
      if (starts != nullptr && starts[t] != 0) da = db = dp = zero();
      if (t0 + t == 0) {
        float* dstate = grad.dstate + b * 3 * A + channel;
        store_left(dstate, da, left);
        store_left(dstate + A, db, left);
        store_left(dstate + 2 * A, fma(da, step.a, fma(db, step.b, dp)), left);
      }
    }
  }
  store_left(grad.dlog_w + b * A + channel, dlog_w, left);
  store_left(grad.du + b * A + channel, du, left);
}

}  // namespace
}  // namespace rookery::ROOKERY_LANES
