// The fork lock, a reader/writer lock.  Readers create descriptors, or children that inherit all
// inheritable ones; writers fork, or make a descriptor inheritable for a moment.
//
// Shared: a spawn that passes inheritable descriptors (close_others=False), and code that
// creates a descriptor in more than one step; many at once.  Exclusive: our fork(), and any
// change of descriptors that children of other threads must not see.  A strict spawn passes only
// the descriptors of its map and needs no lock.
//
// No handler of pthread_atfork waits for it: os.fork calls those with the GIL held, and
// other libraries call them with locks of their own held.
//
// The exclusive holder is a thread: its further locks, shared or not, are only counted, so that
// it can spawn, and change other descriptors.  A thread that holds the lock shared may lock it
// shared again, also while a writer waits, but not exclusively: two such threads would wait for
// each other.
//
// The lock is made of words that change atomically: a fork at any instant, also from a signal
// handler in the middle of lock(), leaves a lock that the child can reset.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

namespace forkfd {

class ForkLock {
  public:
    using Milliseconds = std::chrono::milliseconds;

    void lock_shared() noexcept;
    // False: the time is up.  For a caller that checks for signals in between.
    bool try_lock_shared_for(Milliseconds time) noexcept;
    // By the thread that locked.
    void unlock_shared() noexcept;

    // Throws std::system_error, EDEADLK, where the thread holds it shared.
    bool try_lock_for(Milliseconds time);
    // Any thread may call it: a generator may be finished by another thread than it began on.
    void unlock() noexcept;

    // Called in a child, which has only the thread that forked.  Its exclusive lock remains; its
    // shared locks end, since no other thread is there to be excluded.
    void reset_in_child() noexcept;

  private:
    friend ForkLock& fork_lock();
    ForkLock() = default;

    using Clock = std::chrono::steady_clock;
    static constexpr std::uint32_t kWriter = 1U << 31;
    static constexpr std::uint32_t kWaiting = 1U << 30;  // a writer waits; new readers wait for it
    static constexpr std::uint32_t kReaders = kWaiting - 1;

    struct Reads {
        unsigned generation = 0;
        int depth = 0;
    };
    Reads& reads() noexcept;
    bool mine() const noexcept { return owner_.load() == std::this_thread::get_id(); }
    bool enter_shared(const Clock::time_point* deadline) noexcept;
    bool sleep(std::uint32_t seen, const Clock::time_point* deadline) noexcept;
    void wake() noexcept;

    std::atomic<std::uint32_t> word_{0};
    std::atomic<std::thread::id> owner_{};  // of the exclusive lock
    std::atomic<int> depth_{0};             // locks of the exclusive holder
    std::atomic<unsigned> generation_{1};   // forks since the first process
};

// The only fork lock.  Never destroyed: threads may still spawn while the process exits.  The
// first call makes it, and must not run at the same time as a fork.
ForkLock& fork_lock();

}  // namespace forkfd
