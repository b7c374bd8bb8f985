#include "core/spawn/spawner_thread.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/base/fault.h"
#include "core/base/signal_mask.h"

namespace forkfd {

namespace {

using Task = std::packaged_task<SpawnResult()>;

// Once published never destroyed: the thread outlives static destructors.
struct Queue {
    pid_t owner = ::getpid();
    std::mutex mutex;
    std::condition_variable filled;
    std::deque<Task> tasks;
    bool retired = false;  // another queue was published first

    void retire() {
        const std::lock_guard<std::mutex> lock(mutex);
        retired = true;
        filled.notify_one();
    }

    void serve() {
        ::pthread_setname_np(::pthread_self(), "forkfd-spawner");
        for (;;) {
            std::unique_lock<std::mutex> lock(mutex);
            filled.wait(lock, [this] { return retired || !tasks.empty(); });
            if (retired) return;
            Task task = std::move(tasks.front());
            tasks.pop_front();
            lock.unlock();
            task();
        }
    }
};

std::atomic<Queue*> current{nullptr};

// A queue is published only once its thread runs: if no thread can be started (EAGAIN), no task of
// another caller is stuck in it, and the next caller tries again.
Queue& queue() {
    for (;;) {
        Queue* seen = current.load();
        if (seen != nullptr && seen->owner == ::getpid()) return *seen;  // not left by a fork
        fault::point(Stage::helper_thread, "spawner thread");
        auto fresh = std::make_unique<Queue>();
        std::thread thread;
        {
            const AllSignalsBlocked blocked;  // the program's handlers run on its own threads
            thread = std::thread([queue = fresh.get()] { queue->serve(); });
        }
        if (current.compare_exchange_strong(seen, fresh.get())) {
            thread.detach();
            return *fresh.release();
        }
        fresh->retire();
        thread.join();
    }
}

}  // namespace

void forget_spawner_thread() noexcept { current = nullptr; }

SpawnResult on_spawner_thread(const std::function<SpawnResult()>& work) {
    Task task(work);
    std::future<SpawnResult> result = task.get_future();
    try {
        Queue& q = queue();
        {
            const std::lock_guard<std::mutex> lock(q.mutex);
            q.tasks.push_back(std::move(task));
        }
        q.filled.notify_one();
    } catch (const std::system_error& e) {
        throw_sys(Stage::helper_thread, e.code().value(), "spawner thread");
    }
    return result.get();
}

}  // namespace forkfd
