// k = relu(W_k x_k)^2;  RWKV-4, 5, 6: o = sigmoid(W_r x_r) * (W_v k);  RWKV-7: o = W_v k.
#include "model/mixing.h"

namespace rookery {

ChannelMixing::ChannelMixing(const Config& config, const Weights& weights, Scratch& scratch)
    : key_input_(scratch.input(config.width)),
      receptance_input_(scratch.input(config.width)),
      value_input_(scratch.input(config.ffn_width)),
      hidden_(scratch.floats(config.ffn_width)),
      receptance_(scratch.floats(config.width)) {
  int64_t D = config.width, F = config.ffn_width;
  bool gated = config.version != Version::v7;
  for (int64_t layer = 0; layer < config.num_layers; layer++) {
    auto name = [&](const char* leaf) { return name_of(layer, leaf); };
    layers_.push_back({
        .norm = weights.norm(name("ln2"), D),
        .shift_k = weights.vector(name("ffn.shift_k"), D),
        .shift_r = gated ? weights.vector(name("ffn.shift_r"), D) : nullptr,
        .key = weights.matrix(name("ffn.key"), F, D),
        .value = weights.matrix(name("ffn.value"), D, F),
        .receptance = gated ? weights.matrix(name("ffn.receptance"), D, D) : nullptr,
    });
  }
}

void ChannelMixing::run(const Context& context, int64_t layer) const {
  const Layer& own = layers_[static_cast<size_t>(layer)];
  bool gated = own.receptance != nullptr;
  Shifted inputs[2] = {{own.shift_k, &key_input_, own.key->type}};
  if (gated) inputs[1] = {own.shift_r, &receptance_input_, own.receptance->type};
  shift(context, Part::channel_shift, layer, own.norm, inputs, gated ? 2 : 1);
  context.member.barrier();

  keep_shift(context, Part::channel_shift, layer);
  Job key = {own.key, &key_input_, hidden_, Activation::squared_relu, &value_input_, own.value->type};
  run_jobs(context, &key, 1);
  context.member.barrier();

  add_output(context, *own.value, value_input_, own.receptance, &receptance_input_, receptance_);
}

}  // namespace rookery
