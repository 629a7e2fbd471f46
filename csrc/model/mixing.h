// The two halves of a layer, each with the weights of all layers and the memory that they share.
#pragma once

#include <memory>
#include <vector>

#include "model/pass.h"

namespace rookery {

// x += time mixing of x. Members meet before it and after it.
class TimeMixing {
 public:
  virtual ~TimeMixing() = default;
  virtual void run(const Context& context, int64_t layer) const = 0;
};

// Throw std::invalid_argument where weights are missing or of another shape.
std::unique_ptr<TimeMixing> make_time_mixing_4(const Config& config, const Weights& weights, Scratch& scratch);
std::unique_ptr<TimeMixing> make_time_mixing_5(const Config& config, const Weights& weights, Scratch& scratch);
std::unique_ptr<TimeMixing> make_time_mixing_6(const Config& config, const Weights& weights, Scratch& scratch);
std::unique_ptr<TimeMixing> make_time_mixing_7(const Config& config, const Weights& weights, Scratch& scratch);

// x += channel mixing of x, in all versions: squared ReLU between two matrices, gated where there is a receptance.
class ChannelMixing {
 public:
  ChannelMixing(const Config& config, const Weights& weights, Scratch& scratch);
  void run(const Context& context, int64_t layer) const;

 private:
  struct Layer {
    Norm norm;
    const float *shift_k, *shift_r;
    const Matrix *key, *value, *receptance;  // receptance null in RWKV-7
  };
  std::vector<Layer> layers_;
  OperandBuffer key_input_, receptance_input_, value_input_;
  float *hidden_, *receptance_;
};

// Names of a layer's weights.
inline std::string name_of(int64_t layer, const char* name) { return "blocks." + std::to_string(layer) + "." + name; }

}  // namespace rookery
