// An epoll that records its registrations, so that its instance can be made anew under the same
// number: in the child of every fork(2), which would share the parent's instance, and where an
// entry cannot be removed from the kernel, since its number is closed or another file.
//
// Changes and the fork exclude each other, so a child's map and its instance are of one
// moment.  Safe to use from many threads.
#pragma once

#include <sys/epoll.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/epoll/epoll_drift.h"

namespace forkfd {

struct EpollRegistration {
    int number;
    std::uint32_t events;
    std::uint64_t data;           // low half the number, high half a count: never repeated
    std::uint64_t device, inode;  // of the file that was added
    int err = 0;                  // errno of the failed registration with this process's instance
};

// A lock that records whether this thread is inside, from before it waits until after it has
// unlocked, for a fork in a signal handler.  No thread is inside two.
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

    // Errors are std::system_error: the operation, the registration, and the file that its number
    // is now.  A failed add or modify changes nothing; a failed remove has nevertheless removed
    // the registration, from the kernel's set too.
    void add(int number, std::uint32_t events);
    void modify(int number, std::uint32_t events);
    void remove(int number);

    // epoll_wait(2): the number of ready entries, whose data is their descriptor; or -errno.
    // -EINTR also if only entries were ready that are no longer registered: call again for the
    // remaining time.
    int wait(epoll_event* ready, int size, int timeout_ms);

    int fd() const;  // -1: closed
    std::vector<EpollRegistration> registrations() const;
    std::uint64_t rebuilds() const;  // how often the instance was made anew, also in ancestors
    void close();                    // later calls fail with EBADF

    // Its word in messages, and in the lines of FORKFD_DEBUG=epoll=1 (nullptr: no line).
    struct Operation {
        const char *verb, *stage;
    };

    // Registers the at-fork handlers now; otherwise the first EpollSet does.
    static void watch_forks();

  private:
    friend struct LiveSets;
    using Registrations = std::map<int, EpollRegistration>;

    // Holds the lock, and publishes the result at its end.
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
    void refill(std::uint64_t begun) noexcept;  // begun: trace::now_ns(), for its line
    void publish() noexcept;

    mutable SetLock lock_;
    UniqueFd fd_;
    const int number_;  // of fd_, also after close()
    Registrations registrations_;
    std::uint64_t mark_ = 0;  // exclusive or of their data
    EpollBelief& belief_;
    std::uint32_t count_ = 0;
    std::uint64_t rebuilds_ = 0;
    // errno of a renewal that failed: fd_ is not to be used.  A shortage (ENOMEM, ENFILE,
    // EMFILE) is not for good: the next call tries again.
    int broken_ = 0;
    int waiters_ = 0;       // threads in epoll_wait, on the instance of their start
    bool suspect_ = false;  // to be repaired by the next wait()
    bool torn_ = false;     // the fork came in a signal handler, in the middle of a change
    EpollSet *next_ = nullptr, *previous_ = nullptr;
};

}  // namespace forkfd
