// RWKV-6 and RWKV-7, backward: key channels in lanes, a row of the state for each value channel. The state is the
// transpose of what the forward pass has; chunks of tokens are taken from the last to the first.
#pragma once

#include "kernels/heads_forward.h"

namespace rookery::ROOKERY_LANES {
namespace {

constexpr int64_t padded_keys(int64_t K) { return K <= 16 ? 16 : K <= 32 ? 32 : rounded_up(K, 64); }

// What one task works on: the value channels [begin, begin + rows) of one head. Keys are padded to registers, R at
// a time; rows are padded to 16. Padding holds zeros.
struct Work {
  int64_t keys, rows, slice;  // padded; `slice` rows of all states of a chunk fit into the second-level cache
  float* dS;                  // [rows][keys]
  float* states;              // [1 + kChunkTokens][slice][keys]: before the chunk, and after each token
  float* dfound;              // [slice]
  float *r, *w, *k, *a, *b;   // [kChunkTokens][keys]
  float *dr, *dw, *dk, *da, *db;
  float *v, *dy, *found, *dv;  // [kChunkTokens][rows]
  const uint8_t* starts;       // of this chunk's tokens, or null
  int64_t floats = 0;          // of memory

  Work(float* memory, int64_t padded_keys, int64_t padded_rows) : keys(padded_keys), rows(padded_rows) {
    slice = slice_of(keys);
    if (slice > rows) slice = rows;
    auto take = [&](int64_t n) {
      floats += n;
      return memory == nullptr ? nullptr : memory + floats - n;
    };
    dS = take(rows * keys);
    states = take((1 + kChunkTokens) * slice * keys);
    dfound = take(slice);
    float** of_keys[] = {&r, &w, &k, &a, &b, &dr, &dw, &dk, &da, &db};
    for (float** each : of_keys) *each = take(kChunkTokens * keys);
    float** of_rows[] = {&v, &dy, &found, &dv};
    for (float** each : of_rows) *each = take(kChunkTokens * rows);
  }

  static constexpr int64_t slice_of(int64_t keys) { return keys >= 256 ? 16 : 4096 / keys / 16 * 16; }
  bool starts_at(int64_t t) const { return starts != nullptr && starts[t] != 0; }
  float* state(int64_t t) const { return states + t * slice * keys; }
};

// [K][V] with value channels [begin, begin + columns) to or from [rows][keys].
void load_transposed(const float* from, int64_t K, int64_t V, int64_t columns, float* to, int64_t keys, int64_t rows) {
  for (int64_t k = 0; k < keys; k += 16)
    for (int64_t v = 0; v < rows; v += 16) {
      Floats x[16];
      for (int i = 0; i < 16; i++) x[i] = k + i < K ? load_left(from + (k + i) * V + v, columns - v) : zero();
      transpose(x);
      for (int i = 0; i < 16; i++) store(to + (v + i) * keys + k, x[i]);
    }
}
void store_transposed(const float* from, int64_t keys, int64_t rows, float* to, int64_t K, int64_t V, int64_t columns) {
  for (int64_t k = 0; k < keys; k += 16)
    for (int64_t v = 0; v < rows; v += 16) {
      Floats x[16];
      for (int i = 0; i < 16; i++) x[i] = load(from + (v + i) * keys + k);
      transpose(x);
      for (int i = 0; i < 16 && k + i < K; i++) store_left(to + (k + i) * V + v, x[i], columns - v);
    }
}

template <int R>
ROOKERY_INLINE void load_all(const float* p, Floats (&x)[R]) {
  for (int i = 0; i < R; i++) x[i] = load(p + 16 * i);
}
template <int R>
ROOKERY_INLINE void store_all(float* p, const Floats (&x)[R]) {
  for (int i = 0; i < R; i++) store(p + 16 * i, x[i]);
}

// The state after token t of the chunk from that before it, in rows [first, first + slice) of the task.
template <Heads which, int R>
void advance(const Work& m, int64_t t, int64_t first, int64_t slice) {
  const float *before = m.state(t), *v = m.v + t * m.rows + first, *found = m.found + t * m.rows + first;
  float* after = m.state(t + 1);
  bool fresh = m.starts_at(t);
  for (int64_t block = 0; block < m.keys; block += 16 * R) {
    Floats w[R], k[R], b[R];
    load_all(m.w + t * m.keys + block, w);
    load_all(m.k + t * m.keys + block, k);
    if constexpr (which == Heads::rwkv7) load_all(m.b + t * m.keys + block, b);
    for (int64_t row = 0; row < slice; row++) {
      Floats value = broadcast(v[row]), read = broadcast(found[row]);
      for (int i = 0; i < R; i++) {
        int64_t place = row * m.keys + block + 16 * i;
        Floats s = fresh ? zero() : w[i] * load(before + place);
        if constexpr (which == Heads::rwkv7) s = fma(b[i], read, s);
        store(after + place, fma(k[i], value, s));
      }
    }
  }
}

// RWKV-7's token t. With G the gradient of the state after it, dy r added:
//
//     dr = S_t dy    dk = G v    db = G found    dv = k G    dfound = b G
//     dw = rows of G S_{t-1}     da = S_{t-1} dfound         G <- w G + dfound a
template <int R>
void back_rwkv7(const Work& m, int64_t t, int64_t first, int64_t slice) {
  const float *v = m.v + t * m.rows + first, *dy = m.dy + t * m.rows + first, *found = m.found + t * m.rows + first;
  float *dv = m.dv + t * m.rows + first, *G = m.dS + first * m.keys;
  const float *before = m.state(t), *after = m.state(t + 1);
  for (int64_t block = 0; block < m.keys; block += 16 * R) {
    int64_t place = t * m.keys + block;
    Floats r[R], k[R], b[R], dr[R], dk[R], db[R];
    load_all(m.r + place, r);
    load_all(m.k + place, k);
    load_all(m.b + place, b);
    load_all(m.dr + place, dr);
    load_all(m.dk + place, dk);
    load_all(m.db + place, db);
    for (int64_t group = 0; group < slice; group += 16) {
      Floats to_v[16], to_found[16];
      for (int64_t row = 0; row < 16; row++) {
        Floats dy_ = broadcast(dy[group + row]), v_ = broadcast(v[group + row]), found_ = broadcast(found[group + row]);
        Floats sum_v = zero(), sum_found = zero();
        for (int i = 0; i < R; i++) {
          int64_t at = (group + row) * m.keys + block + 16 * i;
          Floats g = fma(r[i], dy_, load(G + at));
          store(G + at, g);
          dr[i] = fma(load(after + at), dy_, dr[i]);
          dk[i] = fma(g, v_, dk[i]);
          db[i] = fma(g, found_, db[i]);
          sum_v = fma(g, k[i], sum_v);
          sum_found = fma(g, b[i], sum_found);
        }
        to_v[row] = sum_v;
        to_found[row] = sum_found;
      }
      Floats dv_ = sums(to_v), dfound_ = sums(to_found);
      store(dv + group, block == 0 ? dv_ : load(dv + group) + dv_);
      store(m.dfound + group, block == 0 ? dfound_ : load(m.dfound + group) + dfound_);
    }
    store_all(m.dr + place, dr);
    store_all(m.dk + place, dk);
    store_all(m.db + place, db);
  }
  if (m.starts_at(t)) {
    for (int64_t i = 0; i < slice * m.keys; i += 16) store(G + i, zero());
    return;
  }
  for (int64_t block = 0; block < m.keys; block += 16 * R) {
    int64_t place = t * m.keys + block;
    Floats w[R], a[R], dw[R], da[R];
    load_all(m.w + place, w);
    load_all(m.a + place, a);
    load_all(m.dw + place, dw);
    load_all(m.da + place, da);
    for (int64_t row = 0; row < slice; row++) {
      Floats dfound = broadcast(m.dfound[row]);
      for (int i = 0; i < R; i++) {
        int64_t at = row * m.keys + block + 16 * i;
        Floats g = load(G + at), s = load(before + at);
        dw[i] = fma(g, s, dw[i]);
        da[i] = fma(s, dfound, da[i]);
        store(G + at, fma(a[i], dfound, w[i] * g));
      }
    }
    store_all(m.dw + place, dw);
    store_all(m.da + place, da);
  }
}

// RWKV-6's token t but for its bonus. With G the gradient of the state after it:
//
//     dr = S_{t-1} dy    dk = G v    dv = k G    dw = rows of G S_{t-1}    G <- w G + dy r
template <int R>
void back_rwkv6(const Work& m, int64_t t, int64_t first, int64_t slice) {
  const float *v = m.v + t * m.rows + first, *dy = m.dy + t * m.rows + first, *before = m.state(t);
  float *dv = m.dv + t * m.rows + first, *G = m.dS + first * m.keys;
  bool fresh = m.starts_at(t);
  for (int64_t block = 0; block < m.keys; block += 16 * R) {
    int64_t place = t * m.keys + block;
    Floats r[R], w[R], k[R], dr[R], dw[R], dk[R];
    load_all(m.r + place, r);
    load_all(m.w + place, w);
    load_all(m.k + place, k);
    load_all(m.dr + place, dr);
    load_all(m.dw + place, dw);
    load_all(m.dk + place, dk);
    for (int64_t group = 0; group < slice; group += 16) {
      Floats to_v[16];
      for (int64_t row = 0; row < 16; row++) {
        Floats dy_ = broadcast(dy[group + row]), v_ = broadcast(v[group + row]), sum_v = zero();
        for (int i = 0; i < R; i++) {
          int64_t at = (group + row) * m.keys + block + 16 * i;
          Floats g = load(G + at), s = fresh ? zero() : load(before + at);
          dk[i] = fma(g, v_, dk[i]);
          dw[i] = fma(g, s, dw[i]);
          dr[i] = fma(s, dy_, dr[i]);
          sum_v = fma(g, k[i], sum_v);
          store(G + at, fresh ? zero() : fma(r[i], dy_, w[i] * g));
        }
        to_v[row] = sum_v;
      }
      Floats dv_ = sums(to_v);
      store(dv + group, block == 0 ? dv_ : load(dv + group) + dv_);
    }
    store_all(m.dr + place, dr);
    store_all(m.dw + place, dw);
    store_all(m.dk + place, dk);
  }
}

// What comes of the bonus, y_t += (r_t . u k_t) v_t. `u` and `du` are padded.
void back_bonus(const Work& m, int64_t t, const float* u, float* du) {
  const float *r = m.r + t * m.keys, *k = m.k + t * m.keys, *v = m.v + t * m.rows, *dy = m.dy + t * m.rows;
  float *dr = m.dr + t * m.keys, *dk = m.dk + t * m.keys, *dv = m.dv + t * m.rows;
  Floats along = zero(), weight = zero();
  for (int64_t i = 0; i < m.rows; i += 16) along = fma(load(v + i), load(dy + i), along);
  Floats dweight = broadcast(sum(along));
  for (int64_t i = 0; i < m.keys; i += 16) {
    Floats r_ = load(r + i), k_ = load(k + i), u_ = load(u + i);
    weight = fma(r_ * k_, u_, weight);
    store(dr + i, fma(k_ * u_, dweight, load(dr + i)));
    store(dk + i, fma(r_ * u_, dweight, load(dk + i)));
    store(du + i, fma(r_ * k_, dweight, load(du + i)));
  }
  Floats all = broadcast(sum(weight));
  for (int64_t i = 0; i < m.rows; i += 16) store(dv + i, fma(all, load(dy + i), load(dv + i)));
}

void clear(float* p, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) store(p + i, zero());
}

template <Heads which, int R>
void backward_rows(const HeadsInput& x, const HeadsKept& kept, const HeadsGradients& grad, int64_t b, int64_t h,
                   int64_t begin, int64_t end, float* memory) {
  constexpr bool kRemoves = which == Heads::rwkv7;
  const int64_t K = x.size.keys, V = x.size.values, T = x.size.tokens, head = b * x.size.heads + h;
  const int64_t columns = end - begin, rows = rounded_up(columns, 16), keys = padded_keys(K);
  Work m(memory + 2 * keys, keys, rows);
  float *u = memory, *du = memory + keys;
  clear(memory, 2 * keys + m.floats);
  if (!kRemoves)
    for (int64_t i = 0; i < K; i += 16) store(u + i, load_left(x.u + h * K + i, K - i));
  if (grad.dstate_after != nullptr)
    load_transposed(grad.dstate_after + head * K * V + begin, K, V, columns, m.dS, keys, rows);

  for (int64_t chunk = x.size.chunks() - 1; chunk >= 0; chunk--) {
    const int64_t t0 = chunk * kChunkTokens, tokens = T - t0 < kChunkTokens ? T - t0 : kChunkTokens;
    m.starts = x.starts == nullptr ? nullptr : x.starts + b * T + t0;
    for (int64_t t = 0; t < tokens; t++) {
      read_row(x.r, x.r.at(b, t0 + t, h), K, m.r + t * keys);
      read_row(x.k, x.k.at(b, t0 + t, h), K, m.k + t * keys);
      for (int64_t i = 0; i < K; i += 16)
        store(m.w + t * keys + i, exp(read(x.log_w, x.log_w.at(b, t0 + t, h) + i, K - i)));
      read_row(x.v, x.v.at(b, t0 + t, h) + begin, columns, m.v + t * rows);
      read_row(grad.dy, grad.dy.at(b, t0 + t, h) + begin, columns, m.dy + t * rows);
      if constexpr (kRemoves) {
        read_row(x.a, x.a.at(b, t0 + t, h), K, m.a + t * keys);
        read_row(x.b, x.b.at(b, t0 + t, h), K, m.b + t * keys);
        for (int64_t i = 0; i < columns; i += 16)
          store(m.found + t * rows + i, load_left(kept.found + (head * T + t0 + t) * V + begin + i, columns - i));
      }
    }
    clear(m.dr, 5 * kChunkTokens * keys);
    for (int64_t first = 0; first < rows; first += m.slice) {
      int64_t slice = rows - first < m.slice ? rows - first : m.slice;
      load_transposed(kept.states + (head * x.size.chunks() + chunk) * K * V + begin + first, K, V, columns - first,
                      m.states, keys, slice);
      for (int64_t t = 0; t < tokens; t++) advance<which, R>(m, t, first, slice);
      for (int64_t t = tokens - 1; t >= 0; t--) {
        if constexpr (kRemoves)
          back_rwkv7<R>(m, t, first, slice);
        else
          back_rwkv6<R>(m, t, first, slice);
      }
    }
    for (int64_t t = 0; t < tokens; t++) {
      if constexpr (!kRemoves) back_bonus(m, t, u, du);
      for (int64_t i = 0; i < keys; i += 16)
        store(m.dw + t * keys + i, load(m.dw + t * keys + i) * load(m.w + t * keys + i));
      write_row(grad.dr, grad.dr.at(b, t0 + t, h), K, m.dr + t * keys);
      write_row(grad.dlog_w, grad.dlog_w.at(b, t0 + t, h), K, m.dw + t * keys);
      write_row(grad.dk, grad.dk.at(b, t0 + t, h), K, m.dk + t * keys);
      write_row(grad.dv, grad.dv.at(b, t0 + t, h) + begin, columns, m.dv + t * rows);
      if constexpr (kRemoves) {
        write_row(grad.da, grad.da.at(b, t0 + t, h), K, m.da + t * keys);
        write_row(grad.db, grad.db.at(b, t0 + t, h), K, m.db + t * keys);
      }
    }
  }
  if (!kRemoves)
    for (int64_t i = 0; i < K; i += 16) store_left(grad.du + head * K + i, load(du + i), K - i);
  store_transposed(m.dS, keys, rows, grad.dstate + head * K * V + begin, K, V, columns);
}

int64_t backward_bytes(const Sizes& size) {
  int64_t keys = padded_keys(size.keys);
  Work all(nullptr, keys, rounded_up(size.values, 16));
  return 4 * (2 * keys + all.floats);
}

void add_rows(const float* first, int64_t stride, int64_t parts, int64_t n, const Sequence& to, int64_t place) {
  for (int64_t i = 0; i < n; i += 16) {
    Floats total = zero();
    for (int64_t part = 0; part < parts; part++) total = total + load_left(first + part * stride + i, n - i);
    write(to, place + i, total, n - i);
  }
}

template <Heads which>
void backward(const HeadsInput& x, const HeadsKept& kept, const HeadsGradients& grad, int64_t b, int64_t h,
              int64_t begin, int64_t end, void* memory) {
  float* floats = static_cast<float*>(memory);
  if (x.size.keys <= 16)
    backward_rows<which, 1>(x, kept, grad, b, h, begin, end, floats);
  else if (x.size.keys <= 32)
    backward_rows<which, 2>(x, kept, grad, b, h, begin, end, floats);
  else
    backward_rows<which, 4>(x, kept, grad, b, h, begin, end, floats);
}

}  // namespace
}  // namespace rookery::ROOKERY_LANES
