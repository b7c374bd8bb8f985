#include "core/spawn/spawner_thread.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/base/fault.h"
#include "core/base/signal_mask.h"

namespace forkfd {

namespace {

using Task = std::packaged_task<SpawnResult()>;

// Never destroyed: the thread outlives static destructors.
struct Queue {
    pid_t owner = ::getpid();
    std::mutex mutex;
    std::condition_variable filled;
    std::deque<Task> tasks;

    void serve() {
        ::pthread_setname_np(::pthread_self(), "forkfd-spawner");
        for (;;) {
            std::unique_lock<std::mutex> lock(mutex);
            filled.wait(lock, [this] { return !tasks.empty(); });
            Task task = std::move(tasks.front());
            tasks.pop_front();
            lock.unlock();
            task();
        }
    }
};

std::atomic<Queue*> current{nullptr};

Queue& queue() {
    Queue* seen = current.load();
    while (seen == nullptr || seen->owner != ::getpid()) {  // none yet, or left by a fork
        fault::point(Stage::helper_thread, "spawner thread");
        Queue* const fresh = new Queue;
        if (!current.compare_exchange_strong(seen, fresh)) {
            delete fresh;
            continue;
        }
        const AllSignalsBlocked blocked;  // the program's handlers run on its own threads
        try {
            std::thread([fresh] { fresh->serve(); }).detach();
        } catch (const std::system_error&) {
            current = nullptr;  // the next caller tries again
            throw;
        }
        return *fresh;
    }
    return *seen;
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
