// The fork lock: a reader/writer lock between those who hand descriptors to children
// and those who make a descriptor inheritable for a moment.
//
// A spawn that lets inheritable descriptors through (close_others=False) holds it
// shared, so many run at once; code that clears FD_CLOEXEC for a moment holds it
// exclusively, so no such child is cloned meanwhile.  A strict spawn passes only what
// its map names and needs no lock.
//
// The exclusive holder is a thread: what it locks further, shared or not, only counts, so
// that it can spawn, and clear other descriptors.  Therefore no std::shared_mutex; and one
// of those could not be put right after fork(2) either.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

namespace forkfd {

class ForkLock {
  public:
    ForkLock() = default;

    void lock_shared() {
        std::unique_lock<std::mutex> guard(mutex_);
        if (mine()) {
            ++depth_;
            return;
        }
        // A writer that waits goes first: readers come and go, and would starve it.
        changed_.wait(guard, [this] { return depth_ == 0 && writers_waiting_ == 0; });
        ++readers_;
    }

    void unlock_shared() {
        const std::lock_guard<std::mutex> guard(mutex_);
        if (mine()) --depth_;
        else if (--readers_ == 0) changed_.notify_all();
    }

    // False when the time is up, for a caller that has signals to look at.
    bool try_lock_for(std::chrono::milliseconds time) {
        std::unique_lock<std::mutex> guard(mutex_);
        if (!mine()) {
            ++writers_waiting_;
            const bool free =
                changed_.wait_for(guard, time, [this] { return depth_ == 0 && readers_ == 0; });
            --writers_waiting_;
            if (!free) {
                changed_.notify_all();  // readers may have waited for us
                return false;
            }
            owner_ = std::this_thread::get_id();
        }
        ++depth_;
        return true;
    }

    // Also from another thread than the one that locked, where a generator was finished.
    void unlock() {
        const std::lock_guard<std::mutex> guard(mutex_);
        if (--depth_ != 0) return;
        owner_ = {};
        changed_.notify_all();
    }

    // In the child of fork(2) only the thread that forked is left, and what it holds.
    void reset_after_fork() {
        const int depth = mine() ? depth_ : 0;  // ours: no other thread was changing it
        new (this) ForkLock;
        if (depth == 0) return;
        owner_ = std::this_thread::get_id();
        depth_ = depth;
    }

  private:
    bool mine() const { return owner_ == std::this_thread::get_id(); }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::thread::id owner_;  // of the exclusive lock
    int depth_ = 0;          // how often it has locked
    int readers_ = 0;
    int writers_waiting_ = 0;
};

// Never destroyed: threads may still spawn while the process exits.
inline ForkLock& fork_lock() {
    static ForkLock* const lock = new ForkLock;
    return *lock;
}

}  // namespace forkfd
