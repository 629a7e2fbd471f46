// The passes between matrix products and recurrences as functions of arrays [B, T, channels], which Python makes.
#include "mixing.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"

namespace rookery {

using namespace nb::literals;

namespace {

using Arrays = std::vector<Optional>;

TokenShift token_shift(const Array& x, const Optional& last, const Optional& starts, const std::vector<Array>& weights,
                       bool to_present, bool varying, const std::vector<Array>& outputs) {
  if (x.ndim() != 3) throw std::invalid_argument("x needs three axes");
  if (weights.empty() || weights.size() > kMostShifts || outputs.size() != weights.size())
    throw std::invalid_argument("there must be 1 to " + std::to_string(kMostShifts) + " weights, and as many outputs");
  TokenShift s;
  s.batch = static_cast<int64_t>(x.shape(0));
  s.tokens = static_cast<int64_t>(x.shape(1));
  s.channels = static_cast<int64_t>(x.shape(2));
  s.count = static_cast<int>(weights.size());
  s.to_present = to_present;
  s.varying = varying;
  s.x = sequence("x", x, {s.batch, s.tokens, s.channels});
  if (last) s.last = sequence("last", *last, {s.batch, 1, s.channels});
  s.starts = dense<uint8_t>("starts", starts, {s.batch, s.tokens});
  for (size_t n = 0; n < weights.size(); n++) {
    if (varying) {
      s.weights[n] = sequence("a weight", weights[n], {s.batch, s.tokens, s.channels});
    } else {
      s.weights[n] = sequence("a weight", weights[n], {1, 1, s.channels});
      s.weights[n].batch = s.weights[n].token = 0;
    }
    s.y[n] = sequence("an output", outputs[n], {s.batch, s.tokens, s.channels});
  }
  return s;
}

void token_shift_forward_arrays(Array x, Optional last, Optional starts, std::vector<Array> weights, bool to_present,
                                bool varying, std::vector<Array> outputs, int threads) {
  TokenShift s = token_shift(x, last, starts, weights, to_present, varying, outputs);
  threads = clamped_threads(threads);
  nb::gil_scoped_release release;
  token_shift_forward(s, threads);
}

void token_shift_backward_arrays(Array x, Optional last, Optional starts, std::vector<Array> weights, bool to_present,
                                 bool varying, std::vector<Array> douts, Array dx, Optional dlast,
                                 std::vector<Array> dweights, Optional sums, int threads) {
  TokenShift s = token_shift(x, last, starts, weights, to_present, varying, douts);
  s.dx = sequence("dx", dx, {s.batch, s.tokens, s.channels});
  if (dlast) s.dlast = sequence("dlast", *dlast, {s.batch, 1, s.channels});
  if (varying ? dweights.size() != weights.size() : !sums)
    throw std::invalid_argument("weights that vary need as many gradients, others their sums");
  for (size_t n = 0; varying && n < dweights.size(); n++)
    s.dweights[n] = sequence("a weight's gradient", dweights[n], {s.batch, s.tokens, s.channels});
  s.sums = dense<float>("sums", sums, {s.count, s.channels});
  threads = clamped_threads(threads);
  nb::gil_scoped_release release;
  token_shift_backward(s, threads);
}

// Arrays [B, T, H K] as heads. The first array says the sizes; those of `absent` true may be missing, all together.
class HeadArrays {
 public:
  HeadArrays(const Arrays& arrays, int64_t heads) {
    if (arrays.empty() || !arrays[0] || arrays[0]->ndim() != 3) throw std::invalid_argument("inputs need three axes");
    const Array& first = *arrays[0];
    int64_t channels = static_cast<int64_t>(first.shape(2));
    if (heads < 1 || channels % heads != 0) throw std::invalid_argument("heads do not divide the channels");
    size_ = {static_cast<int64_t>(first.shape(0)), static_cast<int64_t>(first.shape(1)), heads, channels / heads,
             channels / heads};
  }
  const Sizes& size() const { return size_; }
  void read(const Arrays& arrays, Sequence* to, int count, bool (*may_be_absent)(int)) const {
    if (static_cast<int>(arrays.size()) != count)
      throw std::invalid_argument("there must be " + std::to_string(count) + " arrays");
    for (int i = 0; i < count; i++) {
      const Optional& each = arrays[static_cast<size_t>(i)];
      if (!each && !may_be_absent(i)) throw std::invalid_argument("an array is missing");
      if (!each) continue;
      to[i] = sequence("an array", *each, {size_.batch, size_.tokens, size_.heads * size_.keys});
      to[i].head = size_.keys;
    }
  }
  void read(const std::vector<Array>& arrays, const float** to, int count) const {
    if (static_cast<int>(arrays.size()) != count)
      throw std::invalid_argument("there must be " + std::to_string(count) + " vectors");
    for (int i = 0; i < count; i++)
      to[i] = dense<float>("a vector", arrays[static_cast<size_t>(i)], {size_.heads * size_.keys});
  }

 private:
  Sizes size_;
};

bool no_array(int) { return false; }

Inputs7 inputs7(const Arrays& inputs, const std::vector<Array>& vectors, const Arrays& results, int64_t heads) {
  HeadArrays arrays(inputs, heads);
  Inputs7 x;
  x.size = arrays.size();
  arrays.read(inputs, x.inputs, kInputs7, [](int i) { return i == kValue || i == kFirst || i == kShare; });
  arrays.read(results, x.results, kResults7, [](int i) { return i == kMixed; });
  arrays.read(vectors, x.vectors, kVectors7);
  const void* mixing[] = {x.inputs[kValue].data, x.inputs[kFirst].data, x.inputs[kShare].data, x.results[kMixed].data};
  for (const void* each : mixing)
    if ((each == nullptr) != (mixing[0] == nullptr))
      throw std::invalid_argument("v, v_first and the share are all there, or none is");
  return x;
}

void inputs7_forward_arrays(Arrays inputs, std::vector<Array> vectors, Arrays results, int64_t heads, int threads) {
  Inputs7 x = inputs7(inputs, vectors, results, heads);
  threads = clamped_threads(threads);
  nb::gil_scoped_release release;
  inputs7_forward(x, threads);
}

void inputs7_backward_arrays(Arrays inputs, std::vector<Array> vectors, Arrays dresults, Arrays dinputs, Array sums,
                             int64_t heads, int threads) {
  Inputs7 x = inputs7(inputs, vectors, dresults, heads);
  HeadArrays(inputs, heads).read(dinputs, x.dinputs, kInputs7, [](int i) {
    return i == kValue || i == kFirst || i == kShare;
  });
  if (x.inputs[kFirst].data != nullptr &&
      (x.dinputs[kValue].data == nullptr || x.dinputs[kFirst].data == nullptr || x.dinputs[kShare].data == nullptr))
    throw std::invalid_argument("a gradient is missing");
  x.sums = dense<float>("sums", sums, {kVectors7, x.size.heads * x.size.keys});
  threads = clamped_threads(threads);
  nb::gil_scoped_release release;
  inputs7_backward(x, threads);
}

Output7 output7(const Arrays& inputs, const std::vector<Array>& vectors, const Optional& result, int64_t heads,
                float epsilon) {
  HeadArrays arrays(inputs, heads);
  Output7 x;
  x.size = arrays.size();
  x.epsilon = epsilon;
  arrays.read(inputs, x.inputs, kOutputs7, no_array);
  arrays.read({result}, &x.result, 1, no_array);
  arrays.read(vectors, x.vectors, kOutputVectors7);
  return x;
}

void output7_forward_arrays(Arrays inputs, std::vector<Array> vectors, Array result, int64_t heads, float epsilon,
                            int threads) {
  Output7 x = output7(inputs, vectors, result, heads, epsilon);
  threads = clamped_threads(threads);
  nb::gil_scoped_release release;
  output7_forward(x, threads);
}

void output7_backward_arrays(Arrays inputs, std::vector<Array> vectors, Array dresult, Arrays dinputs, Array sums,
                             int64_t heads, float epsilon, int threads) {
  Output7 x = output7(inputs, vectors, dresult, heads, epsilon);
  HeadArrays(inputs, heads).read(dinputs, x.dinputs, kOutputs7, no_array);
  x.sums = dense<float>("sums", sums, {kOutputVectors7, x.size.heads * x.size.keys});
  threads = clamped_threads(threads);
  nb::gil_scoped_release release;
  output7_backward(x, threads);
}

// Of one run of memory.
Sequence run(const char* name, const Array& x, int64_t n) {
  if (static_cast<int64_t>(x.size()) != n || !is_dense(x))
    throw std::invalid_argument(std::string(name) + " must be contiguous, of the size of the others");
  return {.data = x.data(), .batch = 0, .token = 0, .head = 0, .number = number_of(name, x)};
}

void squared_relu_forward_arrays(Array x, Array y, int threads) {
  int64_t n = static_cast<int64_t>(x.size());
  Sequence from = run("x", x, n), to = run("y", y, n);
  threads = clamped_threads(threads);
  nb::gil_scoped_release release;
  squared_relu_forward(from, to, n, threads);
}

void squared_relu_backward_arrays(Array y, Array dy, Array dx, int threads) {
  int64_t n = static_cast<int64_t>(y.size());
  Sequence from = run("y", y, n), given = run("dy", dy, n), to = run("dx", dx, n);
  threads = clamped_threads(threads);
  nb::gil_scoped_release release;
  squared_relu_backward(from, given, to, n, threads);
}

}  // namespace

void bind_mixing(nb::module_& m) {
  m.def("token_shift_forward", &token_shift_forward_arrays, "x"_a, "last"_a.none(), "starts"_a.none(), "weights"_a,
        "to_present"_a, "varying"_a, "outputs"_a, "threads"_a, "Writes the outputs.");
  m.def("token_shift_backward", &token_shift_backward_arrays, "x"_a, "last"_a.none(), "starts"_a.none(), "weights"_a,
        "to_present"_a, "varying"_a, "doutputs"_a, "dx"_a, "dlast"_a.none(), "dweights"_a, "sums"_a.none(), "threads"_a,
        "Writes dx and what follows.");
  m.def("rwkv7_inputs_forward", &inputs7_forward_arrays, "inputs"_a, "vectors"_a, "results"_a, "heads"_a, "threads"_a,
        "Writes the results.");
  m.def("rwkv7_inputs_backward", &inputs7_backward_arrays, "inputs"_a, "vectors"_a, "dresults"_a, "dinputs"_a, "sums"_a,
        "heads"_a, "threads"_a, "Writes dinputs and sums.");
  m.def("rwkv7_output_forward", &output7_forward_arrays, "inputs"_a, "vectors"_a, "result"_a, "heads"_a, "epsilon"_a,
        "threads"_a, "Writes the result.");
  m.def("rwkv7_output_backward", &output7_backward_arrays, "inputs"_a, "vectors"_a, "dresult"_a, "dinputs"_a, "sums"_a,
        "heads"_a, "epsilon"_a, "threads"_a, "Writes dinputs and sums.");
  m.def("squared_relu_forward", &squared_relu_forward_arrays, "x"_a, "y"_a, "threads"_a, "Writes y.");
  m.def("squared_relu_backward", &squared_relu_backward_arrays, "y"_a, "dy"_a, "dx"_a, "threads"_a, "Writes dx.");
}

}  // namespace rookery
