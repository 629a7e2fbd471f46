// The threads of the process that compute together.
//
// A model's step is one call of `run`: every member executes the whole function, takes its share of each phase,
// and waits at a barrier where the next phase needs what others made. Between two calls the workers spin for a
// moment, since the next token mostly comes at once, and then sleep.
#pragma once

#include <cstdint>

namespace rookery {

class Barrier;

struct Share {
  int64_t begin, end;
};

// One thread's view of the team.
struct Member {
  int index;
  int count;
  Barrier* meeting;

  // Returns when all members have called it. What they wrote before is visible after.
  void barrier() const;

  // This member's part of n pieces of work: adjoining ranges, in the order of the members, whose bounds are
  // multiples of unit.
  Share share(int64_t n, int64_t unit = 1) const {
    int64_t units = (n + unit - 1) / unit;
    int64_t begin = units * index / count * unit, end = units * (index + 1) / count * unit;
    return {begin < n ? begin : n, end < n ? end : n};
  }
};

constexpr int kMaxThreads = 256;

// Physical cores that this process may run on, and no more than its control group's quota allows.
int default_threads();

// Runs work(member) on `threads` threads, the calling one among them, and returns when all are done. Calls from
// several threads wait for each other. `work` must not throw. threads must be 1 to kMaxThreads.
void run_team(int threads, void (*work)(void* context, const Member& member), void* context);

template <class Work>
void run_team(int threads, Work&& work) {
  run_team(
      threads, [](void* context, const Member& member) { (*static_cast<Work*>(context))(member); },
      const_cast<void*>(static_cast<const void*>(&work)));
}

}  // namespace rookery
