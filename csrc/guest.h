// Threads for work that is done inside another library's program, between that library's own operators.
//
// Torch's threads spin for milliseconds after each operator, waiting for the next; a second team beside them would
// have its cores taken half of the time. So where torch's OpenMP runtime is in the process, its threads do the
// work, and the team of team.h otherwise.
#pragma once

#include <cstdint>

namespace rookery {

// Runs work(context, task) for each task below `tasks`, on up to `threads` threads, and returns when all are done.
// `thread` is below `threads`. `work` must not throw. threads must be 1 to kMaxThreads.
void run_tasks(int threads, int64_t tasks, void (*work)(void* context, int64_t task, int thread), void* context);

template <class Work>
void run_tasks(int threads, int64_t tasks, Work&& work) {
  run_tasks(
      threads, tasks, [](void* context, int64_t task, int thread) { (*static_cast<Work*>(context))(task, thread); },
      const_cast<void*>(static_cast<const void*>(&work)));
}

}  // namespace rookery
