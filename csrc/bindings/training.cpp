// The training kernels as functions of arrays, which Python makes: inputs, then what is written to. All of a
// function's arrays are checked here to have the shapes of the first ones.
#include <nanobind/stl/optional.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"

namespace rookery {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

Sizes sizes_of(const Array& r, const Array& v) {
  if (r.ndim() != 4 || v.ndim() != 4) throw std::invalid_argument("r and v need four axes");
  return {static_cast<int64_t>(r.shape(0)), static_cast<int64_t>(r.shape(1)), static_cast<int64_t>(r.shape(2)),
          static_cast<int64_t>(r.shape(3)), static_cast<int64_t>(v.shape(3))};
}

// The inputs that RWKV-6 and RWKV-7 share.
HeadsInput heads_input(const Array& r, const Array& log_w, const Array& k, const Array& v, const Optional& starts) {
  HeadsInput x;
  auto [B, T, H, K, V] = x.size = sizes_of(r, v);
  x.r = sequence("r", r, {B, T, H, K});
  x.log_w = sequence("log_w", log_w, {B, T, H, K});
  x.k = sequence("k", k, {B, T, H, K});
  x.v = sequence("v", v, {B, T, H, V});
  x.starts = dense<uint8_t>("starts", starts, {B, T});
  return x;
}

void wkv6_forward(Array r, Array log_w, Array k, Array v, Array u, Array state, Optional starts, Array y, Array after,
                  Optional states, int threads) {
  HeadsInput x = heads_input(r, log_w, k, v, starts);
  auto [B, T, H, K, V] = x.size;
  x.u = dense<float>("u", u, {H, K});
  x.state = dense<float>("state", state, {B, H, K, V});
  HeadsKept kept{.states = dense<float>("states", states, {B, H, x.size.chunks(), K, V})};
  HeadsOutput out{.y = sequence("y", y, {B, T, H, V}), .state = dense<float>("after", after, {B, H, K, V})};
  threads = clamped_threads(threads);
  nb::gil_scoped_release release;
  heads_forward(Heads::rwkv6, x, kept, out, threads);
}

void wkv6_backward(Array r, Array log_w, Array k, Array v, Array u, Optional starts, Array states, Array dy,
                   Optional dafter, Array dr, Array dlog_w, Array dk, Array dv, Array du, Array dstate, int threads) {
  HeadsInput x = heads_input(r, log_w, k, v, starts);
  auto [B, T, H, K, V] = x.size;
  x.u = dense<float>("u", u, {H, K});
  HeadsKept kept{.states = dense<float>("states", states, {B, H, x.size.chunks(), K, V})};
  HeadsGradients grad;
  grad.dy = sequence("dy", dy, {B, T, H, V});
  grad.dstate_after = dense<float>("dafter", dafter, {B, H, K, V});
  grad.dr = sequence("dr", dr, {B, T, H, K});
  grad.dlog_w = sequence("dlog_w", dlog_w, {B, T, H, K});
  grad.dk = sequence("dk", dk, {B, T, H, K});
  grad.dv = sequence("dv", dv, {B, T, H, V});
  grad.du = dense<float>("du", du, {B, H, K});
  grad.dstate = dense<float>("dstate", dstate, {B, H, K, V});
  threads = clamped_threads(threads);
  nb::gil_scoped_release release;
  heads_backward(Heads::rwkv6, x, kept, grad, threads);
}

void wkv7_forward(Array r, Array log_w, Array k, Array v, Array a, Array b, Array state, Optional starts, Array y,
                  Array after, Optional states, Optional found, int threads) {
  HeadsInput x = heads_input(r, log_w, k, v, starts);
  auto [B, T, H, K, V] = x.size;
  x.a = sequence("a", a, {B, T, H, K});
  x.b = sequence("b", b, {B, T, H, K});
  x.state = dense<float>("state", state, {B, H, K, V});
  HeadsKept kept{.states = dense<float>("states", states, {B, H, x.size.chunks(), K, V}),
                 .found = dense<float>("found", found, {B, H, T, V})};
  HeadsOutput out{.y = sequence("y", y, {B, T, H, V}), .state = dense<float>("after", after, {B, H, K, V})};
  threads = clamped_threads(threads);
  nb::gil_scoped_release release;
  heads_forward(Heads::rwkv7, x, kept, out, threads);
}

void wkv7_backward(Array r, Array log_w, Array k, Array v, Array a, Array b, Optional starts, Array states, Array found,
                   Array dy, Optional dafter, Array dr, Array dlog_w, Array dk, Array dv, Array da, Array db,
                   Array dstate, int threads) {
  HeadsInput x = heads_input(r, log_w, k, v, starts);
  auto [B, T, H, K, V] = x.size;
  x.a = sequence("a", a, {B, T, H, K});
  x.b = sequence("b", b, {B, T, H, K});
  HeadsKept kept{.states = dense<float>("states", states, {B, H, x.size.chunks(), K, V}),
                 .found = dense<float>("found", found, {B, H, T, V})};
  HeadsGradients grad;
  grad.dy = sequence("dy", dy, {B, T, H, V});
  grad.dstate_after = dense<float>("dafter", dafter, {B, H, K, V});
  grad.dr = sequence("dr", dr, {B, T, H, K});
  grad.dlog_w = sequence("dlog_w", dlog_w, {B, T, H, K});
  grad.dk = sequence("dk", dk, {B, T, H, K});
  grad.dv = sequence("dv", dv, {B, T, H, V});
  grad.da = sequence("da", da, {B, T, H, K});
  grad.db = sequence("db", db, {B, T, H, K});
  grad.dstate = dense<float>("dstate", dstate, {B, H, K, V});
  threads = clamped_threads(threads);
  nb::gil_scoped_release release;
  heads_backward(Heads::rwkv7, x, kept, grad, threads);
}

ChannelsInput channels_input(const Array& log_w, const Array& u, const Array& k, const Array& v,
                             const Optional& starts) {
  if (v.ndim() != 3) throw std::invalid_argument("v needs three axes");
  int64_t B = static_cast<int64_t>(v.shape(0)), T = static_cast<int64_t>(v.shape(1)),
          A = static_cast<int64_t>(v.shape(2));
  ChannelsInput x;
  x.batch = B, x.tokens = T, x.channels = A;
  x.log_w = dense<float>("log_w", log_w, {A});
  x.u = dense<float>("u", u, {A});
  x.k = sequence("k", k, {B, T, A});
  x.v = sequence("v", v, {B, T, A});
  x.starts = dense<uint8_t>("starts", starts, {B, T});
  return x;
}

void wkv4_forward(Array log_w, Array u, Array k, Array v, Array state, Optional starts, Array y, Array after,
                  Optional states, int threads) {
  ChannelsInput x = channels_input(log_w, u, k, v, starts);
  x.state = dense<float>("state", state, {x.batch, 3, x.channels});
  ChannelsOutput out{.y = sequence("y", y, {x.batch, x.tokens, x.channels}),
                     .state = dense<float>("after", after, {x.batch, 3, x.channels}),
                     .kept = dense<float>("states", states, {x.batch, x.chunks(), 4, x.channels})};
  threads = clamped_threads(threads);
  nb::gil_scoped_release release;
  channels_forward(x, out, threads);
}

void wkv4_backward(Array log_w, Array u, Array k, Array v, Optional starts, Array states, Array dy, Optional dafter,
                   Array dlog_w, Array du, Array dk, Array dv, Array dstate, int threads) {
  ChannelsInput x = channels_input(log_w, u, k, v, starts);
  int64_t B = x.batch, T = x.tokens, A = x.channels;
  ChannelsGradients grad;
  grad.kept = dense<float>("states", states, {B, x.chunks(), 4, A});
  grad.dy = sequence("dy", dy, {B, T, A});
  grad.dstate_after = dense<float>("dafter", dafter, {B, 3, A});
  grad.dlog_w = dense<float>("dlog_w", dlog_w, {B, A});
  grad.du = dense<float>("du", du, {B, A});
  grad.dk = sequence("dk", dk, {B, T, A});
  grad.dv = sequence("dv", dv, {B, T, A});
  grad.dstate = dense<float>("dstate", dstate, {B, 3, A});
  threads = clamped_threads(threads);
  nb::gil_scoped_release release;
  channels_backward(x, grad, threads);
}

}  // namespace

void bind_training(nb::module_& m) {
  m.attr("CHUNK_TOKENS") = kChunkTokens;
  m.def("wkv4_forward", &wkv4_forward, "log_w"_a, "u"_a, "k"_a, "v"_a, "state"_a, "starts"_a.none(), "y"_a, "after"_a,
        "states"_a.none(), "threads"_a, "Writes y, after, and where it is given states.");
  m.def("wkv4_backward", &wkv4_backward, "log_w"_a, "u"_a, "k"_a, "v"_a, "starts"_a.none(), "states"_a, "dy"_a,
        "dafter"_a.none(), "dlog_w"_a, "du"_a, "dk"_a, "dv"_a, "dstate"_a, "threads"_a,
        "Writes dlog_w and what follows.");
  m.def("wkv6_forward", &wkv6_forward, "r"_a, "log_w"_a, "k"_a, "v"_a, "u"_a, "state"_a, "starts"_a.none(), "y"_a,
        "after"_a, "states"_a.none(), "threads"_a, "Writes y, after, and where it is given states.");
  m.def("wkv6_backward", &wkv6_backward, "r"_a, "log_w"_a, "k"_a, "v"_a, "u"_a, "starts"_a.none(), "states"_a, "dy"_a,
        "dafter"_a.none(), "dr"_a, "dlog_w"_a, "dk"_a, "dv"_a, "du"_a, "dstate"_a, "threads"_a,
        "Writes dr and what follows.");
  m.def("wkv7_forward", &wkv7_forward, "r"_a, "log_w"_a, "k"_a, "v"_a, "a"_a, "b"_a, "state"_a, "starts"_a.none(),
        "y"_a, "after"_a, "states"_a.none(), "found"_a.none(), "threads"_a,
        "Writes y, after, and where they are given states and found.");
  m.def("wkv7_backward", &wkv7_backward, "r"_a, "log_w"_a, "k"_a, "v"_a, "a"_a, "b"_a, "starts"_a.none(), "states"_a,
        "found"_a, "dy"_a, "dafter"_a.none(), "dr"_a, "dlog_w"_a, "dk"_a, "dv"_a, "da"_a, "db"_a, "dstate"_a,
        "threads"_a, "Writes dr and what follows.");
}

}  // namespace rookery
