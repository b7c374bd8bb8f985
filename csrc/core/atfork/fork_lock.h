// The fork lock: a reader/writer lock between those who make descriptors, or children that
// get all inheritable ones, and those who fork or make a descriptor inheritable for a moment.
//
// Shared: a spawn that lets inheritable descriptors through (close_others=False), and code
// that makes a descriptor in more than one step; many at once.  Exclusively: our fork(), and
// whoever changes descriptors that others' children must not see changed.  A strict spawn
// passes only what its map names and needs no lock.
//
// No handler of pthread_atfork waits for it: os.fork calls those with the GIL held, and
// other libraries with locks of theirs.
//
// The exclusive holder is a thread: what it locks further, shared or not, only counts, so
// that it can spawn, and change other descriptors.  Who holds it shared may lock it shared
// again, also while a writer waits, but not exclusively: two who do so would wait for each
// other.
//
// Nothing but words, changed atomically: a fork at any instant, from a signal handler in the
// middle of lock() too, leaves a lock that the child can put right.
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
    // False when the time is up, for a caller that has signals to look at.
    bool try_lock_shared_for(Milliseconds time) noexcept;
    // By the thread that locked.
    void unlock_shared() noexcept;

    // Throws std::system_error, EDEADLK, where the thread holds it shared.
    bool try_lock_for(Milliseconds time);
    // Also from another thread than the one that locked, where a generator was finished.
    void unlock() noexcept;

    // In the child only the thread that forked is left, and what it holds exclusively; what
    // it held shared counts no more, as nobody is there to be kept out.
    void reset_in_child() noexcept;

  private:
    friend ForkLock& fork_lock();
    ForkLock() = default;

    using Clock = std::chrono::steady_clock;
    static constexpr std::uint32_t kWriter = 1U << 31;
    static constexpr std::uint32_t kWaiting = 1U << 30;  // a writer: new readers wait too
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
    std::atomic<int> depth_{0};             // how often it has locked
    std::atomic<unsigned> generation_{1};   // forks since the first process
};

// The only one.  Never destroyed: threads may still spawn while the process exits.  Made by
// the first call, which must not be at the same time as a fork.
ForkLock& fork_lock();

}  // namespace forkfd
