// Norms, mixing with the token before, activations and gates (what each computes: step_kernels.h).
#pragma once

#include "lanes/functions.h"
#include "step_kernels.h"

namespace rookery::ROOKERY_LANES {
namespace {

constexpr float kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// The lanes of n channels: f(first channel, lanes), with fewer than 16 lanes at the end alone.
template <class F>
ROOKERY_INLINE void each(int64_t n, F f) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f(i, 16);
  if (i < n) f(i, static_cast<int>(n - i));
}

ROOKERY_INLINE Floats lanes(const float* p, int n) { return n == 16 ? load(p) : load(p, n); }
ROOKERY_INLINE void put(float* p, Floats x, int n) {
  if (n == 16)
    store(p, x);
  else
    store(p, x, n);
}

bool finite(const float* x, int64_t n) {
  // Zero times anything finite is zero, and NaN otherwise.
  Floats total = zero();
  each(n, [&](int64_t i, int m) { total = fma(lanes(x + i, m), zero(), total); });
  return sum(total) == 0;
}

double sum_of_exponentials(const float* x, float largest, int64_t n) {
  // Floats sum up a part at a time, so that 65536 of them lose no more than a few do.
  constexpr int64_t kPart = 1024;
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kPart) {
    Floats part = zero();
    each(n - begin < kPart ? n - begin : kPart, [&](int64_t i, int m) {
      part = fma(exp(lanes(x + begin + i, m) - broadcast(largest)), lanes(kOnes, m), part);
    });
    total += static_cast<double>(sum(part));
  }
  return total;
}

struct Moments {
  float mean, scale;  // of (x - mean) * scale: variance 1
};

ROOKERY_INLINE Moments moments(const float* x, int64_t n, float epsilon) {
  Floats total = zero();
  each(n, [&](int64_t i, int m) { total = total + lanes(x + i, m); });
  float mean = sum(total) / static_cast<float>(n);
  Floats squares = zero();
  each(n, [&](int64_t i, int m) {
    Floats difference = lanes(x + i, m) - lanes(kOnes, m) * broadcast(mean);
    squares = fma(difference, difference, squares);
  });
  return {mean, 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + epsilon)};
}

void layer_norm(const float* x, const float* weight, const float* bias, int64_t n, float* y) {
  constexpr float kEpsilon = 1e-5f;
  Moments m = moments(x, n, kEpsilon);
  Floats mean = broadcast(m.mean), scale = broadcast(m.scale);
  each(n, [&](int64_t i, int l) {
    put(y + i, fma((lanes(x + i, l) - mean) * scale, lanes(weight + i, l), lanes(bias + i, l)), l);
  });
}

void interpolate(const float* x, const float* previous, const float* weight, int64_t n, float* y) {
  each(n, [&](int64_t i, int m) {
    Floats own = lanes(x + i, m);
    put(y + i, fma(lanes(previous + i, m) - own, lanes(weight + i, m), own), m);
  });
}

void interpolate_moved(const float* x, const float* previous, const float* weight, const float* moved, int64_t n,
                       float* y) {
  each(n, [&](int64_t i, int m) {
    Floats own = lanes(x + i, m), share = lanes(weight + i, m) + lanes(moved + i, m);
    put(y + i, fma(lanes(previous + i, m) - own, share, own), m);
  });
}

void tanh_of(float* x, int64_t n) {
  each(n, [&](int64_t i, int m) { put(x + i, tanh(lanes(x + i, m)), m); });
}

void sigmoid_of(float* x, int64_t n) {
  each(n, [&](int64_t i, int m) { put(x + i, sigmoid(lanes(x + i, m)), m); });
}

void squared_relu(float* x, int64_t n) {
  each(n, [&](int64_t i, int m) {
    // In this order NaN stays NaN.
    Floats positive = max(zero(), lanes(x + i, m));
    put(x + i, positive * positive, m);
  });
}

void add(float* x, const float* y, int64_t n) {
  each(n, [&](int64_t i, int m) { put(x + i, lanes(x + i, m) + lanes(y + i, m), m); });
}

void add_gated(float* x, const float* gate, const float* y, int64_t n) {
  each(n, [&](int64_t i, int m) { put(x + i, fma(sigmoid(lanes(gate + i, m)), lanes(y + i, m), lanes(x + i, m)), m); });
}

void decay6(float* w, const float* base, int64_t n) {
  each(n, [&](int64_t i, int m) { put(w + i, exp(-exp(lanes(base + i, m) + lanes(w + i, m))), m); });
}

bool end_head(const HeadEnd& end) {
  bool all_finite = true;
  for (int64_t t = 0; t < end.tokens; t++) {
    int64_t at = t * end.stride;
    float* y = end.y + at;
    Moments norm = moments(y, end.size, end.epsilon);
    // The mean of what holds NaN or infinity is neither zero nor finite after this.
    all_finite = all_finite && norm.mean * 0.0f == 0.0f && norm.scale * 0.0f == 0.0f;
    Floats mean = broadcast(norm.mean), scale = broadcast(norm.scale), bonus = zero();
    if (end.r_k != nullptr) {
      Floats products = zero();
      each(end.size, [&](int64_t i, int m) {
        products = fma(lanes(end.r + at + i, m) * lanes(end.k + at + i, m), lanes(end.r_k + i, m), products);
      });
      bonus = broadcast(sum(products));
    }
    each(end.size, [&](int64_t i, int m) {
      Floats result = fma((lanes(y + i, m) - mean) * scale, lanes(end.weight + i, m), lanes(end.bias + i, m));
      if (end.r_k != nullptr) result = fma(bonus, lanes(end.v + at + i, m), result);
      if (end.gate != nullptr) {
        Floats gate = lanes(end.gate + at + i, m);
        result = result * (end.silu ? gate * sigmoid(gate) : gate);
      }
      put(y + i, result, m);
    });
  }
  return all_finite;
}

}  // namespace
}  // namespace rookery::ROOKERY_LANES
