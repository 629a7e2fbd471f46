#include "guest.h"

#include <atomic>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

#include "team.h"

namespace rookery {
namespace {

// GNU's entry points, which LLVM's and Intel's runtimes have as well.
struct OpenMp {
  void (*parallel)(void (*work)(void*), void* context, unsigned threads, unsigned flags) = nullptr;
  int (*index)() = nullptr;

  OpenMp() {
#if defined(__unix__) || defined(__APPLE__)
    auto parallel_found = dlsym(RTLD_DEFAULT, "GOMP_parallel"), index_found = dlsym(RTLD_DEFAULT, "omp_get_thread_num");
    if (parallel_found == nullptr || index_found == nullptr) return;
    parallel = reinterpret_cast<decltype(parallel)>(parallel_found);
    index = reinterpret_cast<decltype(index)>(index_found);
#endif
  }
};

struct Tasks {
  std::atomic<int64_t> next{0};
  int64_t count;
  void (*work)(void*, int64_t, int);
  void* context;
  int (*index)();

  void take_all(int thread) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(context, task, thread);
  }
};

}  // namespace

void run_tasks(int threads, int64_t tasks, void (*work)(void* context, int64_t task, int thread), void* context) {
  // Looked up when first needed: by then torch, whose operators call this, is there.
  static const OpenMp openmp;
  Tasks all{.count = tasks, .work = work, .context = context, .index = openmp.index};
  if (tasks < threads) threads = static_cast<int>(tasks);
  if (threads <= 1)
    all.take_all(0);
  else if (openmp.parallel != nullptr)
    openmp.parallel(
        [](void* p) {
          Tasks* shared = static_cast<Tasks*>(p);
          shared->take_all(shared->index());
        },
        &all, static_cast<unsigned>(threads), 0);
  else
    run_team(threads, [&](const Member& member) { all.take_all(member.index); });
}

}  // namespace rookery
