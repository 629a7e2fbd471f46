// Reading and writing tensors of fp32 or bf16 by sixteen channels, the last ones of a row perhaps fewer.
#pragma once

#include "lanes/functions.h"
#include "training.h"

namespace rookery::ROOKERY_LANES {
namespace {

constexpr int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// `left` channels of a row remain; lanes beyond them are 0, and are not written.
ROOKERY_INLINE Floats load_left(const float* p, int64_t left) {
  return left >= 16 ? load(p) : left > 0 ? load(p, static_cast<int>(left)) : zero();
}
ROOKERY_INLINE void store_left(float* p, Floats x, int64_t left) {
  if (left >= 16)
    store(p, x);
  else if (left > 0)
    store(p, x, static_cast<int>(left));
}

// The channels from `place` on, of which `left` remain.
ROOKERY_INLINE Floats read(const Sequence& x, int64_t place, int64_t left) {
  if (x.number == Number::fp32) return load_left(static_cast<const float*>(x.data) + place, left);
  const uint16_t* p = static_cast<const uint16_t*>(x.data) + place;
  if (left >= 16) return load_bf16(p);
  uint16_t some[16] = {};
  for (int64_t i = 0; i < left; i++) some[i] = p[i];
  return load_bf16(some);
}
ROOKERY_INLINE void write(const Sequence& x, int64_t place, Floats value, int64_t left) {
  if (x.number == Number::fp32) return store_left(static_cast<float*>(x.data) + place, value, left);
  uint16_t* p = static_cast<uint16_t*>(x.data) + place;
  if (left >= 16) return store_bf16(p, value);
  uint16_t some[16];
  store_bf16(some, value);
  for (int64_t i = 0; i < left; i++) p[i] = some[i];
}

// A whole row of n channels, into memory for a multiple of 16.
void read_row(const Sequence& x, int64_t place, int64_t n, float* row) {
  for (int64_t i = 0; i < n; i += 16) store(row + i, read(x, place + i, n - i));
}
void write_row(const Sequence& x, int64_t place, int64_t n, const float* row) {
  for (int64_t i = 0; i < n; i += 16) write(x, place + i, load(row + i), n - i);
}

}  // namespace
}  // namespace rookery::ROOKERY_LANES
