// The recurrences, token after token, as inference runs them (what each computes: step_kernels.h).
//
// A head's state lies as [key channel][value channel]; a column of 16 or 64 value channels goes through all tokens
// by itself. One pass over it for each token: the state is read once, and written once.
#pragma once

#include "kernels/step.h"

namespace rookery::ROOKERY_LANES {
namespace {

void wkv4(const Channels4& c) {
  each(c.channels, [&](int64_t i, int n) {
    Floats a = lanes(c.state_in + i, n), b = lanes(c.state_in + c.state_stride + i, n);
    Floats p = lanes(c.state_in + 2 * c.state_stride + i, n);
    Floats log_decay = lanes(c.log_decay + i, n), bonus = lanes(c.bonus + i, n);
    for (int64_t t = 0; t < c.tokens; t++) {
      int64_t at = t * c.stride + i;
      Floats key = lanes(c.k + at, n), value = lanes(c.v + at, n);
      Floats q = max(p, bonus + key);
      Floats past = exp(p - q), present = exp(bonus + key - q);
      Floats y = fma(past, a, present * value) / fma(past, b, present);
      put(c.y + at, y * sigmoid(lanes(c.r + at, n)), n);
      q = max(p + log_decay, key);
      past = exp(p + log_decay - q);
      present = exp(key - q);
      a = fma(past, a, present * value);
      b = fma(past, b, present);
      p = q;
    }
    put(c.state_out + i, a, n);
    put(c.state_out + c.state_stride + i, b, n);
    put(c.state_out + 2 * c.state_stride + i, p, n);
  });
}

// Sums for one row of a state at a time, in registers: as many as there are.
constexpr int kColumn = kTokensPerTile > 4 ? 4 : 1;

// Value channels [first, first + 16 N) of a head; of its last 16 there are `n`.
template <int N>
ROOKERY_INLINE void wkv6_column(const Head6& h, int64_t first, int n) {
  const float* from = h.state_in;
  for (int64_t t = 0; t < h.tokens; t++) {
    const float *r = h.r + t * h.stride, *k = h.k + t * h.stride, *w = h.w + t * h.w_stride;
    Floats v[N], y[N];
    float own = 0;
    for (int64_t i = 0; i < h.size; i++) own += r[i] * h.bonus[i] * k[i];
    ROOKERY_UNROLL for (int g = 0; g < N; g++) {
      v[g] = lanes(h.v + t * h.stride + first + 16 * g, g == N - 1 ? n : 16);
      y[g] = broadcast(own) * v[g];
    }
    for (int64_t i = 0; i < h.size; i++) {
      const float* row = from + i * h.size + first;
      float* to = h.state_out + i * h.size + first;
      Floats decay = broadcast(w[i]), key = broadcast(k[i]), receptance = broadcast(r[i]);
      ROOKERY_UNROLL for (int g = 0; g < N; g++) {
        int m = g == N - 1 ? n : 16;
        Floats state = lanes(row + 16 * g, m);
        y[g] = fma(receptance, state, y[g]);
        put(to + 16 * g, fma(decay, state, key * v[g]), m);
      }
    }
    ROOKERY_UNROLL for (int g = 0; g < N; g++) { put(h.y + t * h.stride + first + 16 * g, y[g], g == N - 1 ? n : 16); }
    from = h.state_out;
  }
}

void wkv6(const Head6& head) {
  int64_t first = 0;
  for (; first + 16 * kColumn <= head.size; first += 16 * kColumn) wkv6_column<kColumn>(head, first, 16);
  for (; first + 16 <= head.size; first += 16) wkv6_column<1>(head, first, 16);
  if (first < head.size) wkv6_column<1>(head, first, static_cast<int>(head.size - first));
}

void prepare7(const Head7& h) {
  constexpr float kFastestLogDecay = -0.606530659712633f;  // -e^(-1/2)
  for (int64_t t = 0; t < h.tokens; t++) {
    int64_t at = t * h.stride;
    float *k = h.k + at, *v = h.v + at, *w = h.w + at, *a = h.a + at, *b = h.b + at;
    Floats squares = zero();
    each(h.size, [&](int64_t i, int n) {
      Floats removed = lanes(k + i, n) * lanes(h.k_k + i, n);
      squares = fma(removed, removed, squares);
    });
    float length = __builtin_sqrtf(sum(squares));
    Floats scale = broadcast(1.0f / (length > 1e-12f ? length : 1e-12f));
    each(h.size, [&](int64_t i, int n) {
      put(w + i, exp(broadcast(kFastestLogDecay) * sigmoid(lanes(h.w0 + i, n) + lanes(w + i, n))), n);
      Floats rate = sigmoid(lanes(h.a0 + i, n) + lanes(a + i, n)), key = lanes(k + i, n);
      Floats removed = key * lanes(h.k_k + i, n) * scale;
      if (h.v0 != nullptr) {
        Floats share = sigmoid(lanes(h.v0 + i, n) + lanes(b + i, n)), value = lanes(v + i, n);
        put(v + i, fma(lanes(h.v_first + at + i, n) - value, share, value), n);
      }
      put(a + i, -removed, n);
      put(b + i, removed * rate, n);
      put(k + i, fma(key * (rate - broadcast(1.0f)), lanes(h.k_a + i, n), key), n);
    });
  }
}

// One token; kNext: another one follows, and what its key to be removed finds in the state is summed up.
template <int N, bool kNext>
ROOKERY_INLINE void wkv7_token(const Head7& h, int64_t t, const float* from, int64_t first, int n, Floats (&found)[N]) {
  int64_t at = t * h.stride;
  const float *r = h.r + at, *w = h.w + at, *k = h.k + at, *b = h.b + at, *next = h.a + at + (kNext ? h.stride : 0);
  Floats v[N], y[N], finds[N];
  ROOKERY_UNROLL for (int g = 0; g < N; g++) {
    v[g] = lanes(h.v + at + first + 16 * g, g == N - 1 ? n : 16);
    y[g] = finds[g] = zero();
  }
  for (int64_t i = 0; i < h.size; i++) {
    const float* row = from + i * h.size + first;
    float* to = h.state_out + i * h.size + first;
    Floats decay = broadcast(w[i]), key = broadcast(k[i]), removed = broadcast(b[i]), receptance = broadcast(r[i]);
    ROOKERY_UNROLL for (int g = 0; g < N; g++) {
      int m = g == N - 1 ? n : 16;
      Floats state = fma(decay, lanes(row + 16 * g, m), fma(removed, found[g], key * v[g]));
      y[g] = fma(receptance, state, y[g]);
      if constexpr (kNext) finds[g] = fma(broadcast(next[i]), state, finds[g]);
      put(to + 16 * g, state, m);
    }
  }
  ROOKERY_UNROLL for (int g = 0; g < N; g++) {
    put(h.y + at + first + 16 * g, y[g], g == N - 1 ? n : 16);
    found[g] = finds[g];
  }
}

template <int N>
ROOKERY_INLINE void wkv7_column(const Head7& h, int64_t first, int n) {
  Floats found[N];
  ROOKERY_UNROLL for (int g = 0; g < N; g++) { found[g] = zero(); }
  for (int64_t i = 0; i < h.size; i++) ROOKERY_UNROLL for (int g = 0; g < N; g++) {
      Floats state = lanes(h.state_in + i * h.size + first + 16 * g, g == N - 1 ? n : 16);
      found[g] = fma(broadcast(h.a[i]), state, found[g]);
    }
  const float* from = h.state_in;
  for (int64_t t = 0; t + 1 < h.tokens; t++) {
    wkv7_token<N, true>(h, t, from, first, n, found);
    from = h.state_out;
  }
  wkv7_token<N, false>(h, h.tokens - 1, from, first, n, found);
}

void wkv7(const Head7& head) {
  int64_t first = 0;
  for (; first + 16 * kColumn <= head.size; first += 16 * kColumn) wkv7_column<kColumn>(head, first, 16);
  for (; first + 16 <= head.size; first += 16) wkv7_column<1>(head, first, 16);
  if (first < head.size) wkv7_column<1>(head, first, static_cast<int>(head.size - first));
}

constexpr StepKernels step_kernels() {
  return {
      .finite = finite,
      .sum_of_exponentials = sum_of_exponentials,
      .layer_norm = layer_norm,
      .interpolate = interpolate,
      .interpolate_moved = interpolate_moved,
      .tanh = tanh_of,
      .sigmoid = sigmoid_of,
      .squared_relu = squared_relu,
      .add = add,
      .add_gated = add_gated,
      .decay6 = decay6,
      .wkv4 = wkv4,
      .wkv6 = wkv6,
      .prepare7 = prepare7,
      .wkv7 = wkv7,
      .end_head = end_head,
  };
}

}  // namespace
}  // namespace rookery::ROOKERY_LANES
