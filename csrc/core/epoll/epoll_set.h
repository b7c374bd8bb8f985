// An epoll that knows what is registered with it, so that its instance can be made anew
// under the same number: in the child of every fork(2), which would share the parent's, and
// where the kernel keeps what cannot be removed, since its number is closed or another file.
//
// Changes and the fork exclude each other, so a child's map and its instance are of one
// moment.  Safe to use from many threads.
#pragma once

#include <sys/epoll.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "core/epoll/epoll_drift.h"
#include "core/base/unique_fd.h"

namespace forkfd {

struct EpollRegistration {
    int number;
    std::uint32_t events;
    std::uint64_t data;           // number below, a count above: no two are ever the same
    std::uint64_t device, inode;  // of the file that was added
    int err = 0;                  // why this process's instance does not watch it
};

// A lock that knows whether this thread is at it, from before it waits until it has let go,
// for a fork that comes in a signal handler.  No thread is at two.
class SetLock {
  public:
    void lock() {
        at_ = this;
        mutex_.lock();
    }
    void unlock() {
        mutex_.unlock();
        at_ = nullptr;
    }
    bool mine() const noexcept { return at_ == this; }

  private:
    static inline thread_local const SetLock* volatile at_ = nullptr;
    std::mutex mutex_;
};

class EpollSet {
  public:
    EpollSet();
    EpollSet(const EpollSet&) = delete;
    EpollSet& operator=(const EpollSet&) = delete;
    ~EpollSet();

    // Errors are std::system_error: what was tried on which registration, and what has
    // become of its number.  A failed add or modify changes nothing; a failed remove has
    // nevertheless removed the registration, from the kernel's set too.
    void add(int number, std::uint32_t events);
    void modify(int number, std::uint32_t events);
    void remove(int number);

    // epoll_wait(2): how many are ready, their data being the number; or -errno.  -EINTR also
    // where only what is no longer registered was ready: wait for the time that is left.
    int wait(epoll_event* ready, int size, int timeout_ms);

    int fd() const;  // -1: closed
    std::vector<EpollRegistration> registrations() const;
    std::uint64_t rebuilds() const;  // how often the instance was made anew, here and before
    void close();                    // for good: an error of later calls is EBADF

    // Its word in messages, and in the lines of FORKFD_DEBUG=epoll=1 (nullptr: no line).
    struct Operation {
        const char *verb, *stage;
    };

    // Sees to forks from now on; else the first EpollSet does.
    static void watch_forks();

  private:
    friend struct LiveSets;
    using Registrations = std::map<int, EpollRegistration>;

    // Holds the lock, and tells at its end what has come of it.
    class Change {
      public:
        explicit Change(EpollSet& set);
        ~Change();

      private:
        const std::lock_guard<SetLock> lock_;
        EpollSet& set_;
    };

    [[noreturn]] void fail(int err, const Operation& operation, int number) const;
    void demand_instance(const Operation& operation, int number);
    bool broken_by_shortage() const noexcept;
    void make_anew() noexcept;
    int control(int operation, const EpollRegistration& r) const noexcept;
    void repair();
    void suspect();
    void renew() noexcept;
    void refill(std::uint64_t begun) noexcept;  // trace::now_ns(), for its line
    void publish() noexcept;

    mutable SetLock lock_;
    UniqueFd fd_;
    const int number_;  // what fd_ is, or was
    Registrations registrations_;
    std::uint64_t mark_ = 0;  // exclusive or of their data
    EpollBelief& belief_;
    std::uint32_t count_ = 0;
    std::uint64_t rebuilds_ = 0;
    // errno of a renewal that failed: fd_ is not to be used.  A shortage (ENOMEM, ENFILE,
    // EMFILE) is not for good: the next call tries again.
    int broken_ = 0;
    int waiters_ = 0;       // threads in epoll_wait, on the instance of their start
    bool suspect_ = false;  // to be repaired by one that waits
    bool torn_ = false;     // this fork fell into a change: a signal handler's, on its thread
    EpollSet *next_ = nullptr, *previous_ = nullptr;
};

}  // namespace forkfd
