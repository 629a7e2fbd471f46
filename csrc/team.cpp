#include "team.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace rookery {
namespace {

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// How long a worker watches for the next call before it sleeps: longer than what lies between two tokens of one
// stream (sampling, decoding bytes), shorter than what anyone would notice as load.
constexpr auto kWatch = std::chrono::microseconds(500);

// At a barrier the others are at most a phase away. Only where there are more threads than cores does it take
// longer than this many looks, and then the core is better given up.
constexpr int kLooks = 20000;

}  // namespace

class Barrier {
 public:
  void wait(int count) {
    unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int looks = 0; round_.load(std::memory_order_acquire) == round; looks++) {
      if (looks < kLooks)
        pause_briefly();
      else
        std::this_thread::yield();
    }
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
};

void Member::barrier() const {
  if (count > 1) meeting->wait(count);
}

namespace {

class Pool {
 public:
  void run(int threads, void (*work)(void*, const Member&), void* context) {
    std::lock_guard<std::mutex> one_at_a_time(callers_);
    while (static_cast<int>(workers_.size()) < threads - 1) {
      auto worker = std::make_unique<Worker>();
      int index = static_cast<int>(workers_.size()) + 1;
      std::thread([this, index, &own = *worker] { serve(own, index); }).detach();
      workers_.push_back(std::move(worker));
    }
    work_ = work;
    context_ = context;
    threads_ = threads;
    pending_.store(threads - 1, std::memory_order_relaxed);
    // Only those who take part: after a call of many threads, one of few does not wake the others.
    for (int i = 0; i < threads - 1; i++) {
      Worker& worker = *workers_[static_cast<size_t>(i)];
      worker.calls.fetch_add(1, std::memory_order_release);
      worker.calls.notify_one();
    }
    work(context, Member{0, threads, &barrier_});
    for (int looks = 0; pending_.load(std::memory_order_acquire) > 0; looks++) {
      if (looks < kLooks)
        pause_briefly();
      else
        std::this_thread::yield();
    }
  }

  // The child of a fork has none of the threads.
  static Pool& shared();

 private:
  struct alignas(64) Worker {
    std::atomic<unsigned> calls{0};  // that it was asked to take part in
  };

  void serve(Worker& worker, int index) {
    for (unsigned seen = 0;; seen++) {
      auto until = std::chrono::steady_clock::now() + kWatch;
      while (worker.calls.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < until)
        for (int i = 0; i < 32; i++) pause_briefly();
      worker.calls.wait(seen, std::memory_order_acquire);
      work_(context_, Member{index, threads_, &barrier_});
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex callers_;
  std::vector<std::unique_ptr<Worker>> workers_;
  Barrier barrier_;
  void (*work_)(void*, const Member&) = nullptr;
  void* context_ = nullptr;
  int threads_ = 0;
  alignas(64) std::atomic<int> pending_{0};
};

// Never destroyed: at exit the workers may still look at it. A forked child makes a new one.
Pool* pool = nullptr;
std::mutex pool_lock;

Pool& Pool::shared() {
  std::lock_guard<std::mutex> lock(pool_lock);
  if (pool == nullptr) {
    static bool registered = [] {
      pthread_atfork([] { pool_lock.lock(); }, [] { pool_lock.unlock(); },
                     [] {
                       pool = nullptr;
                       pool_lock.unlock();
                     });
      return true;
    }();
    (void)registered;
    pool = new Pool;
  }
  return *pool;
}

int physical_cores() {
#if defined(__linux__)
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings)) siblings = std::to_string(cpu);
    cores.insert(siblings);
  }
  return cores.empty() ? 1 : static_cast<int>(cores.size());
#else
  return static_cast<int>(std::thread::hardware_concurrency());
#endif
}

int quota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string limit;
  double period = 0;
  if (!(file >> limit >> period) || limit == "max" || period <= 0) return kMaxThreads;
  double cores = std::atof(limit.c_str()) / period;
  return cores < 1 ? 1 : static_cast<int>(cores + 0.5);
}

}  // namespace

int default_threads() {
  int threads = std::min({physical_cores(), quota(), kMaxThreads});
  return threads < 1 ? 1 : threads;
}

void run_team(int threads, void (*work)(void* context, const Member& member), void* context) {
  if (threads == 1) {
    work(context, Member{0, 1, nullptr});
    return;
  }
  Pool::shared().run(threads, work, context);
}

}  // namespace rookery
