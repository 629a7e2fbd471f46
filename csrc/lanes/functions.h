// Functions of sixteen lanes that no instruction set has: exponential, logistic function, hyperbolic tangent.
// Included after one of the lanes.
#pragma once

namespace rookery::ROOKERY_LANES {

ROOKERY_INLINE Floats zero() { return broadcast(0.0f); }
ROOKERY_INLINE Floats operator-(Floats a) { return zero() - a; }

// Lane i of x[j] becomes lane j of x[i].
ROOKERY_INLINE void transpose(Floats (&x)[16]) {
  for (int i = 0; i < 8; i++) exchange<8>(x[i], x[i + 8]);
  for (int i = 0; i < 16; i += i % 4 == 3 ? 5 : 1) exchange<4>(x[i], x[i + 4]);
  for (int i = 0; i < 16; i += i % 2 == 1 ? 3 : 1) exchange<2>(x[i], x[i + 2]);
  for (int i = 0; i < 16; i += 2) exchange<1>(x[i], x[i + 1]);
}

// The sums of sixteen: lane i is that of x[i]. Overwrites x.
ROOKERY_INLINE Floats sums(Floats (&x)[16]) {
  for (int i = 0; i < 8; i++) exchange<8>(x[i], x[i + 8]), x[i] = x[i] + x[i + 8];
  for (int i = 0; i < 4; i++) exchange<4>(x[i], x[i + 4]), x[i] = x[i] + x[i + 4];
  for (int i = 0; i < 2; i++) exchange<2>(x[i], x[i + 2]), x[i] = x[i] + x[i + 2];
  exchange<1>(x[0], x[1]);
  return x[0] + x[1];
}

// e^x, within 2 units in the last place; 0 below -87.3 (where e^x is denormal), 2^127.5 above 88.3, and NaN for NaN.
ROOKERY_INLINE Floats exp(Floats x) {
  x = min(broadcast(88.37f), max(broadcast(-87.99f), x));
  // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts so that r is exact. e^r by its series to r^7 / 7!.
  Floats n = round(x * broadcast(1.44269504f));
  Floats r = fma(n, broadcast(-0.693145752f), x);
  r = fma(n, broadcast(-1.42860677e-6f), r);
  Floats p = broadcast(1.0f / 5040);
  p = fma(p, r, broadcast(1.0f / 720));
  p = fma(p, r, broadcast(1.0f / 120));
  p = fma(p, r, broadcast(1.0f / 24));
  p = fma(p, r, broadcast(1.0f / 6));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return p * power_of_two(n);
}

ROOKERY_INLINE Floats sigmoid(Floats x) { return broadcast(1.0f) / (broadcast(1.0f) + exp(-x)); }

// Absolute error below 2e-7, which is what sums of low rank need; near 0 the relative error grows.
ROOKERY_INLINE Floats tanh(Floats x) { return fma(broadcast(2.0f), sigmoid(broadcast(2.0f) * x), broadcast(-1.0f)); }

}  // namespace rookery::ROOKERY_LANES
