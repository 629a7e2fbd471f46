// Arrays of any library as what the training kernels read and write, each checked to have the shape it must have.
#pragma once

#include <nanobind/ndarray.h>

#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>

#include "team.h"
#include "training.h"

namespace rookery {

namespace nb = nanobind;

using Array = nb::ndarray<nb::device::cpu>;
using Optional = std::optional<Array>;

inline int clamped_threads(int threads) {
  if (threads < 1) throw std::invalid_argument("threads must be at least 1, not " + std::to_string(threads));
  return threads < kMaxThreads ? threads : kMaxThreads;
}

inline void check_shape(const char* name, const Array& x, std::initializer_list<int64_t> shape) {
  bool same = x.ndim() == shape.size();
  size_t axis = 0;
  for (int64_t n : shape) same = same && static_cast<int64_t>(x.shape(axis++)) == n;
  if (!same) throw std::invalid_argument(std::string(name) + " has another shape than the other arrays need");
}

inline Number number_of(const char* name, const Array& x) {
  if (x.dtype() == nb::dtype<float>()) return Number::fp32;
  if (x.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && x.dtype().bits == 16)
    return Number::bf16;
  throw std::invalid_argument(std::string(name) + " must be float32 or bfloat16");
}

// [B, T, H, channels] or [B, T, channels], channels side by side.
inline Sequence sequence(const char* name, const Array& x, std::initializer_list<int64_t> shape) {
  check_shape(name, x, shape);
  size_t last = x.ndim() - 1;
  if (x.shape(last) > 1 && x.stride(last) != 1)
    throw std::invalid_argument(std::string(name) + "'s channels must lie together");
  return {.data = x.data(),
          .batch = x.stride(0),
          .token = x.stride(1),
          .head = last == 3 ? x.stride(2) : 0,
          .number = number_of(name, x)};
}

inline bool is_dense(const Array& x) {
  int64_t expected = 1;
  for (size_t axis = x.ndim(); axis-- > 0;) {
    if (x.shape(axis) != 1 && x.stride(axis) != expected) return false;
    expected *= static_cast<int64_t>(x.shape(axis));
  }
  return true;
}

template <class T>
T* dense(const char* name, const Array& x, std::initializer_list<int64_t> shape) {
  check_shape(name, x, shape);
  if (x.dtype() != nb::dtype<T>() || !is_dense(x))
    throw std::invalid_argument(std::string(name) + " must be contiguous, of " +
                                (sizeof(T) == 4 ? "float32" : "uint8"));
  return static_cast<T*>(x.data());
}
template <class T>
T* dense(const char* name, const Optional& x, std::initializer_list<int64_t> shape) {
  return x ? dense<T>(name, *x, shape) : nullptr;
}

}  // namespace rookery
