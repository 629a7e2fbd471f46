// RWKV-6 and RWKV-7, forward: 16 R value channels of a head in lanes, the state [K][16 R] in the first-level cache.
// A token is one pass over it: what the next token reads is summed up on the way.
#pragma once

#include "kernels/sequences.h"

namespace rookery::ROOKERY_LANES {
namespace {

// Between [K][16 R] and [K][V], of which only `columns` are there.
template <int R>
void load_columns(const float* from, int64_t V, int64_t K, int64_t columns, float* S) {
  for (int64_t k = 0; k < K; k++)
    for (int i = 0; i < R; i++) store(S + (k * R + i) * 16, load_left(from + k * V + 16 * i, columns - 16 * i));
}
template <int R>
void store_columns(const float* S, int64_t V, int64_t K, int64_t columns, float* to) {
  for (int64_t k = 0; k < K; k++)
    for (int i = 0; i < R; i++) store_left(to + k * V + 16 * i, load(S + (k * R + i) * 16), columns - 16 * i);
}

struct KeyRows {
  float *r, *w, *k, *a, *b;  // w is log_w until exponentials are taken

  KeyRows(float* memory, int64_t padded_keys)
      : r(memory), w(r + padded_keys), k(w + padded_keys), a(k + padded_keys), b(a + padded_keys) {}

  template <Heads which>
  void read(const HeadsInput& x, int64_t b_, int64_t t, int64_t h) {
    int64_t K = x.size.keys;
    read_row(x.r, x.r.at(b_, t, h), K, r);
    read_row(x.log_w, x.log_w.at(b_, t, h), K, w);
    for (int64_t i = 0; i < K; i += 16) store(w + i, exp(load(w + i)));
    read_row(x.k, x.k.at(b_, t, h), K, k);
    if constexpr (which == Heads::rwkv7) read_row(x.b, x.b.at(b_, t, h), K, b);
  }
};

template <Heads which, int R>
void forward_columns(const HeadsInput& x, const HeadsKept& kept, const HeadsOutput& out, int64_t b, int64_t h,
                     int64_t begin, int64_t columns, float* memory) {
  constexpr bool kRemoves = which == Heads::rwkv7;
  const int64_t K = x.size.keys, V = x.size.values, T = x.size.tokens, head = b * x.size.heads + h;
  float* S = memory;
  KeyRows row(S + K * 16 * R, rounded_up(K, 16));
  load_columns<R>(x.state + head * K * V + begin, V, K, columns, S);

  Floats found[R];
  for (int i = 0; i < R; i++) found[i] = zero();
  if constexpr (kRemoves) {
    read_row(x.a, x.a.at(b, 0, h), K, row.a);
    for (int64_t k = 0; k < K; k++)
      for (int i = 0; i < R; i++) found[i] = fma(broadcast(row.a[k]), load(S + (k * R + i) * 16), found[i]);
  }
  for (int64_t t = 0; t < T; t++) {
    if (x.starts != nullptr && x.starts[b * T + t] != 0) {
      for (int64_t i = 0; i < K * R; i++) store(S + 16 * i, zero());
      for (int i = 0; i < R; i++) found[i] = zero();
    }
    if (kept.states != nullptr && t % kChunkTokens == 0) {
      float* place = kept.states + (head * x.size.chunks() + t / kChunkTokens) * K * V + begin;
      store_columns<R>(S, V, K, columns, place);
    }
    row.read<which>(x, b, t, h);
    Floats v[R], y[R], next[R];
    for (int i = 0; i < R; i++) {
      v[i] = read(x.v, x.v.at(b, t, h) + begin + 16 * i, columns - 16 * i);
      y[i] = next[i] = zero();
    }
    if constexpr (kRemoves) {
      if (kept.found != nullptr)
        for (int i = 0; i < R; i++)
          store_left(kept.found + (head * T + t) * V + begin + 16 * i, found[i], columns - 16 * i);
      if (t + 1 < T) read_row(x.a, x.a.at(b, t + 1, h), K, row.a);
      for (int64_t k = 0; k < K; k++) {
        Floats w = broadcast(row.w[k]), key = broadcast(row.k[k]), r = broadcast(row.r[k]);
        Floats removed = broadcast(row.b[k]), read_next = broadcast(row.a[k]);
        for (int i = 0; i < R; i++) {
          float* place = S + (k * R + i) * 16;
          Floats s = fma(key, v[i], fma(removed, found[i], w * load(place)));
          store(place, s);
          y[i] = fma(r, s, y[i]);
          next[i] = fma(read_next, s, next[i]);
        }
      }
      for (int i = 0; i < R; i++) found[i] = next[i];
    } else {
      const float* u = x.u + h * K;
      Floats own = zero();
      for (int64_t k = 0; k < K; k += 16)
        own = fma(load_left(row.r + k, K - k) * load_left(u + k, K - k), load_left(row.k + k, K - k), own);
      for (int64_t k = 0; k < K; k++) {
        Floats w = broadcast(row.w[k]), key = broadcast(row.k[k]), r = broadcast(row.r[k]);
        for (int i = 0; i < R; i++) {
          float* place = S + (k * R + i) * 16;
          Floats s = load(place);
          y[i] = fma(r, s, y[i]);
          store(place, fma(key, v[i], w * s));
        }
      }
      for (int i = 0; i < R; i++) y[i] = fma(broadcast(sum(own)), v[i], y[i]);
    }
    for (int i = 0; i < R; i++) write(out.y, out.y.at(b, t, h) + begin + 16 * i, y[i], columns - 16 * i);
  }
  store_columns<R>(S, V, K, columns, out.state + head * K * V + begin);
}

int64_t forward_bytes(const Sizes& size) { return 4 * (size.keys * 64 + 5 * rounded_up(size.keys, 16)); }

template <Heads which>
void forward(const HeadsInput& x, const HeadsKept& kept, const HeadsOutput& out, int64_t b, int64_t h, int64_t begin,
             int64_t end, void* memory) {
  float* floats = static_cast<float*>(memory);
  while (begin < end) {
    int64_t left = end - begin;
    if (left > 32) {
      forward_columns<which, 4>(x, kept, out, b, h, begin, left < 64 ? left : 64, floats);
      begin += 64;
    } else if (left > 16) {
      forward_columns<which, 2>(x, kept, out, b, h, begin, left, floats);
      begin += 32;
    } else {
      forward_columns<which, 1>(x, kept, out, b, h, begin, left, floats);
      begin += 16;
    }
  }
}

}  // namespace
}  // namespace rookery::ROOKERY_LANES
