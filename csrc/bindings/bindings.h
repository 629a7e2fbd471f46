#pragma once

#include <nanobind/nanobind.h>

namespace rookery {

void bind_machine(nanobind::module_& m);
void bind_matrix(nanobind::module_& m);
void bind_quantize(nanobind::module_& m);
void bind_probe(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);
void bind_model(nanobind::module_& m);
void bind_training(nanobind::module_& m);
void bind_mixing(nanobind::module_& m);

}  // namespace rookery
