// The extension module rookery.native._engine. Each file of this folder binds one concept.
#include "bindings/bindings.h"

NB_MODULE(_engine, m) {
  m.doc() = "The native engine: see rookery.native, which is its face.";
  // Python objects that live until the process ends are no leak.
  nanobind::set_leak_warnings(false);
  rookery::bind_machine(m);
  rookery::bind_matrix(m);
  rookery::bind_quantize(m);
  rookery::bind_probe(m);
  rookery::bind_sampling(m);
  rookery::bind_model(m);
  rookery::bind_training(m);
  rookery::bind_mixing(m);
}
