// The passes of mixing.h over sixteen channels at a time. A token's row lies in the first-level cache, so that
// what is read twice of it, for a sum over a head and then for what the sum scales, comes from there.
#pragma once

#include "kernels/sequences.h"
#include "mixing.h"

namespace rookery::ROOKERY_LANES {
namespace {

ROOKERY_INLINE void add_to(float* p, Floats x, int64_t left) { store_left(p, load_left(p, left) + x, left); }

// 1 in the first `left` lanes, 0 in the others.
ROOKERY_INLINE Floats present(int64_t left) {
  constexpr float kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  return load_left(kOnes, left);
}

// --- Token shift. ---

// The row before that of token t of stream b: where it is, or null data for zeros.
struct Before {
  Sequence x;
  int64_t place;
};

ROOKERY_INLINE Before before(const TokenShift& s, int64_t b, int64_t t) {
  if (s.starts != nullptr && s.starts[b * s.tokens + t] != 0) return {};
  if (t == 0) return {s.last, s.last.at(b, 0, 0)};
  return {s.x, s.x.at(b, t - 1, 0)};
}

void token_shift_forward(const TokenShift& s, int64_t begin, int64_t end) {
  const int64_t D = s.channels;
  for (int64_t row = begin; row < end; row++) {
    int64_t b = row / s.tokens, t = row % s.tokens, place = s.x.at(b, t, 0);
    Before from = before(s, b, t);
    for (int64_t i = 0; i < D; i += 16) {
      Floats x = read(s.x, place + i, D - i);
      Floats previous = from.x.data == nullptr ? zero() : read(from.x, from.place + i, D - i);
      Floats origin = s.to_present ? previous : x, difference = s.to_present ? x - previous : previous - x;
      for (int n = 0; n < s.count; n++) {
        Floats weight = read(s.weights[n], s.weights[n].at(b, t, 0) + i, D - i);
        write(s.y[n], s.y[n].at(b, t, 0) + i, fma(difference, weight, origin), D - i);
      }
    }
  }
}

// What the outputs at a token give to its previous input.
ROOKERY_INLINE Floats to_previous(const TokenShift& s, int64_t b, int64_t t, int64_t i) {
  Floats total = zero();
  for (int n = 0; n < s.count; n++) {
    Floats dy = read(s.y[n], s.y[n].at(b, t, 0) + i, s.channels - i);
    Floats weight = read(s.weights[n], s.weights[n].at(b, t, 0) + i, s.channels - i);
    total = fma(dy, s.to_present ? broadcast(1.0f) - weight : weight, total);
  }
  return total;
}

void token_shift_backward(const TokenShift& s, int64_t begin, int64_t end, float* sums) {
  const int64_t D = s.channels, T = s.tokens;
  for (int64_t row = begin; row < end; row++) {
    int64_t b = row / T, t = row % T, place = s.x.at(b, t, 0);
    Before from = before(s, b, t);
    bool is_read = t + 1 < T && (s.starts == nullptr || s.starts[row + 1] == 0);
    for (int64_t i = 0; i < D; i += 16) {
      Floats x = read(s.x, place + i, D - i);
      Floats previous = from.x.data == nullptr ? zero() : read(from.x, from.place + i, D - i);
      Floats difference = s.to_present ? x - previous : previous - x;
      Floats dx = is_read ? to_previous(s, b, t + 1, i) : zero();
      for (int n = 0; n < s.count; n++) {
        Floats dy = read(s.y[n], s.y[n].at(b, t, 0) + i, D - i);
        Floats weight = read(s.weights[n], s.weights[n].at(b, t, 0) + i, D - i);
        dx = fma(dy, s.to_present ? weight : broadcast(1.0f) - weight, dx);
        if (s.varying)
          write(s.dweights[n], s.dweights[n].at(b, t, 0) + i, dy * difference, D - i);
        else
          add_to(sums + n * D + i, dy * difference, D - i);
      }
      write(s.dx, s.dx.at(b, t, 0) + i, dx, D - i);
      if (t == 0 && s.dlast.data != nullptr)
        write(s.dlast, s.dlast.at(b, 0, 0) + i,
              s.starts != nullptr && s.starts[row] != 0 ? zero() : to_previous(s, b, 0, i), D - i);
    }
  }
}

// --- The inputs of RWKV-7's recurrence. ---

constexpr float kFastestLogDecay = -0.60653066f;  // -e^(-1/2)

// One head of one token.
struct Head7 {
  const Inputs7& x;
  int64_t b, t, h, K;

  Head7(const Inputs7& x_, int64_t row, int64_t h_)
      : x(x_), b(row / x_.size.tokens), t(row % x_.size.tokens), h(h_), K(x_.size.keys) {}
  ROOKERY_INLINE Floats of(const Sequence& s, int64_t i) const { return read(s, s.at(b, t, h) + i, K - i); }
  ROOKERY_INLINE Floats input(int which, int64_t i) const { return of(x.inputs[which], i); }
  ROOKERY_INLINE Floats result(int which, int64_t i) const { return of(x.results[which], i); }
  ROOKERY_INLINE Floats vector(int which, int64_t i) const { return load_left(x.vectors[which] + h * K + i, K - i); }
  ROOKERY_INLINE void put(const Sequence& s, int64_t i, Floats value) const {
    write(s, s.at(b, t, h) + i, value, K - i);
  }
  // 1 / |k k_k|, as torch's normalize has it.
  float inverse_norm() const {
    Floats squares = zero();
    for (int64_t i = 0; i < K; i += 16) {
      Floats z = input(kKey, i) * vector(kRemovalKey, i);
      squares = fma(z, z, squares);
    }
    float norm = __builtin_sqrtf(sum(squares));
    return 1.0f / (norm > 1e-12f ? norm : 1e-12f);
  }
};

void inputs7_forward(const Inputs7& x, int64_t begin, int64_t end) {
  const bool mixes = x.inputs[kFirst].data != nullptr;
  const Floats one = broadcast(1.0f);
  for (int64_t row = begin; row < end; row++)
    for (int64_t h = 0; h < x.size.heads; h++) {
      Head7 head(x, row, h);
      Floats inverse = broadcast(head.inverse_norm());
      for (int64_t i = 0; i < head.K; i += 16) {
        Floats k = head.input(kKey, i), rate = sigmoid(head.vector(kRate0, i) + head.input(kRate, i));
        Floats kappa = k * head.vector(kRemovalKey, i) * inverse;
        head.put(x.results[kLogDecay], i,
                 broadcast(kFastestLogDecay) * sigmoid(head.vector(kDecay0, i) + head.input(kMoved, i)));
        head.put(x.results[kWritten], i, k * fma(rate - one, head.vector(kRateKey, i), one));
        head.put(x.results[kRemoved], i, -kappa);
        head.put(x.results[kAdded], i, kappa * rate);
        if (!mixes) continue;
        Floats v = head.input(kValue, i), share = sigmoid(head.vector(kShare0, i) + head.input(kShare, i));
        head.put(x.results[kMixed], i, fma(head.input(kFirst, i) - v, share, v));
      }
    }
}

void inputs7_backward(const Inputs7& x, int64_t begin, int64_t end, float* sums) {
  const bool mixes = x.inputs[kFirst].data != nullptr;
  const Floats one = broadcast(1.0f);
  const int64_t K = x.size.keys, A = x.size.heads * K;
  for (int64_t row = begin; row < end; row++)
    for (int64_t h = 0; h < x.size.heads; h++) {
      Head7 head(x, row, h);
      float inverse_norm = head.inverse_norm();
      // Where the norm is below its floor, kappa is proportional to k and nothing is projected out.
      bool floored = inverse_norm >= 1e12f;
      Floats inverse = broadcast(inverse_norm), along = zero();
      for (int64_t i = 0; i < K && !floored; i += 16) {
        Floats rate = sigmoid(head.vector(kRate0, i) + head.input(kRate, i));
        Floats kappa = head.input(kKey, i) * head.vector(kRemovalKey, i) * inverse;
        along = fma(fma(head.result(kAdded, i), rate, -head.result(kRemoved, i)), kappa, along);
      }
      Floats projection = broadcast(sum(along));
      for (int64_t i = 0; i < K; i += 16) {
        float* to = sums + h * K + i;
        int64_t left = K - i;
        Floats k = head.input(kKey, i), rate = sigmoid(head.vector(kRate0, i) + head.input(kRate, i));
        Floats removal_key = head.vector(kRemovalKey, i), rate_key = head.vector(kRateKey, i);
        Floats kappa = k * removal_key * inverse;
        Floats dadded = head.result(kAdded, i), dwritten = head.result(kWritten, i);

        Floats share_of_decay = sigmoid(head.vector(kDecay0, i) + head.input(kMoved, i));
        Floats dmoved =
            head.result(kLogDecay, i) * broadcast(kFastestLogDecay) * share_of_decay * (one - share_of_decay);
        head.put(x.dinputs[kMoved], i, dmoved);
        add_to(to + kDecay0 * A, dmoved, left);

        Floats drate = fma(dadded, kappa, dwritten * k * rate_key) * rate * (one - rate);
        head.put(x.dinputs[kRate], i, drate);
        add_to(to + kRate0 * A, drate, left);

        Floats dkappa = fma(dadded, rate, -head.result(kRemoved, i));
        Floats dz = (dkappa - kappa * projection) * inverse;
        head.put(x.dinputs[kKey], i, fma(dwritten, fma(rate - one, rate_key, one), dz * removal_key));
        add_to(to + kRemovalKey * A, dz * k, left);
        add_to(to + kRateKey * A, dwritten * k * (rate - one), left);
        if (!mixes) continue;

        Floats v = head.input(kValue, i), first = head.input(kFirst, i), dmixed = head.result(kMixed, i);
        Floats share = sigmoid(head.vector(kShare0, i) + head.input(kShare, i));
        Floats dfirst = dmixed * share, dshare = dfirst * (first - v) * (one - share);
        head.put(x.dinputs[kValue], i, dmixed - dfirst);
        head.put(x.dinputs[kFirst], i, dfirst);
        head.put(x.dinputs[kShare], i, dshare);
        add_to(to + kShare0 * A, dshare, left);
      }
    }
}

// --- RWKV-7's output: norm, bonus and gate. ---

struct HeadOutput7 {
  const Output7& x;
  int64_t b, t, h, V;
  Floats mean, inverse_deviation, bonus;

  HeadOutput7(const Output7& x_, int64_t row, int64_t h_)
      : x(x_), b(row / x_.size.tokens), t(row % x_.size.tokens), h(h_), V(x_.size.keys) {
    Floats total = zero(), squares = zero(), weight = zero();
    for (int64_t i = 0; i < V; i += 16) total = total + input(kRead, i);
    mean = broadcast(sum(total) / static_cast<float>(V));
    for (int64_t i = 0; i < V; i += 16) {
      Floats centred = (input(kRead, i) - mean) * present(V - i);
      squares = fma(centred, centred, squares);
      weight = fma(input(kReceptance, i) * input(kWrittenKey, i), vector(kBonus, i), weight);
    }
    inverse_deviation = broadcast(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(V) + x.epsilon));
    bonus = broadcast(sum(weight));
  }
  ROOKERY_INLINE Floats of(const Sequence& s, int64_t i) const { return read(s, s.at(b, t, h) + i, V - i); }
  ROOKERY_INLINE Floats input(int which, int64_t i) const { return of(x.inputs[which], i); }
  ROOKERY_INLINE Floats vector(int which, int64_t i) const { return load_left(x.vectors[which] + h * V + i, V - i); }
  ROOKERY_INLINE void put(const Sequence& s, int64_t i, Floats value) const {
    write(s, s.at(b, t, h) + i, value, V - i);
  }
  ROOKERY_INLINE Floats normal(int64_t i) const { return (input(kRead, i) - mean) * inverse_deviation; }
  ROOKERY_INLINE Floats before_gate(int64_t i) const {
    return fma(bonus, input(kWrittenValue, i), fma(normal(i), vector(kWeight, i), vector(kBias, i)));
  }
};

void output7_forward(const Output7& x, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++)
    for (int64_t h = 0; h < x.size.heads; h++) {
      HeadOutput7 head(x, row, h);
      for (int64_t i = 0; i < head.V; i += 16) head.put(x.result, i, head.before_gate(i) * head.input(kGate, i));
    }
}

void output7_backward(const Output7& x, int64_t begin, int64_t end, float* sums) {
  const int64_t V = x.size.keys, A = x.size.heads * V;
  for (int64_t row = begin; row < end; row++)
    for (int64_t h = 0; h < x.size.heads; h++) {
      HeadOutput7 head(x, row, h);
      Floats along_value = zero(), total = zero(), along_normal = zero();
      for (int64_t i = 0; i < V; i += 16) {
        Floats dsum = head.of(x.result, i) * head.input(kGate, i), dnormal = dsum * head.vector(kWeight, i);
        along_value = fma(dsum, head.input(kWrittenValue, i), along_value);
        total = total + dnormal;
        along_normal = fma(dnormal, head.normal(i), along_normal);
      }
      const float share = 1.0f / static_cast<float>(V);
      Floats dbonus = broadcast(sum(along_value)), mean = broadcast(sum(total) * share);
      Floats projection = broadcast(sum(along_normal) * share);
      for (int64_t i = 0; i < V; i += 16) {
        float* to = sums + h * V + i;
        Floats dresult = head.of(x.result, i), dsum = dresult * head.input(kGate, i), normal = head.normal(i);
        Floats r = head.input(kReceptance, i), k = head.input(kWrittenKey, i), bonus = head.vector(kBonus, i);
        head.put(x.dinputs[kGate], i, dresult * head.before_gate(i));
        head.put(x.dinputs[kRead], i,
                 (dsum * head.vector(kWeight, i) - mean - normal * projection) * head.inverse_deviation);
        head.put(x.dinputs[kReceptance], i, dbonus * k * bonus);
        head.put(x.dinputs[kWrittenKey], i, dbonus * r * bonus);
        head.put(x.dinputs[kWrittenValue], i, dsum * head.bonus);
        add_to(to + kBonus * A, dbonus * r * k, V - i);
        add_to(to + kWeight * A, dsum * normal, V - i);
        add_to(to + kBias * A, dsum, V - i);
      }
    }
}

// --- Squared ReLU. ---

void squared_relu_forward(const Sequence& x, const Sequence& y, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 16) {
    Floats positive = max(zero(), read(x, i, end - i));
    write(y, i, positive * positive, end - i);
  }
}

void squared_relu_backward(const Sequence& y, const Sequence& dy, const Sequence& dx, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 16) {
    Floats positive = sqrt(read(y, i, end - i));
    write(dx, i, broadcast(2.0f) * positive * read(dy, i, end - i), end - i);
  }
}

constexpr MixingKernels mixing_kernels() {
  return {
      .token_shift_forward = token_shift_forward,
      .token_shift_backward = token_shift_backward,
      .inputs7_forward = inputs7_forward,
      .inputs7_backward = inputs7_backward,
      .output7_forward = output7_forward,
      .output7_backward = output7_backward,
      .squared_relu_forward = squared_relu_forward,
      .squared_relu_backward = squared_relu_backward,
  };
}

}  // namespace
}  // namespace rookery::ROOKERY_LANES
