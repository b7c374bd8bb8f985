// The gauge epoll_drift: how far the registrations of our epolls differ from the kernel's
// entries, read by a thread that takes no lock.
#pragma once

#include <atomic>
#include <cstdint>

namespace forkfd {

// The registrations of one EpollSet, readable by any thread.  The owner brackets each change with
// begin() and end(), which exclude each other but not the reader: the reader notices a change
// and reads again.
class EpollBelief {
  public:
    static EpollBelief& take();  // std::bad_alloc
    void give_back() noexcept;   // never freed, since a reader may be in it: reused by take()

    void begin() noexcept { version_ = version_ | 1; }
    // `mark`: exclusive or of the data of all registrations; number -1: no instance.
    void end(int number, std::uint64_t registrations, std::uint64_t mark) noexcept {
        number_ = number;
        registrations_ = registrations;
        mark_ = mark;
        version_ = (version_ | 1) + 1;
    }

    // Returns how many registrations differ from the kernel's entries, at least: those whose
    // number is closed or another file here, or those that only one of both has.  -1: unknown.
    std::int64_t drift() noexcept;
    static std::int64_t all() noexcept;

  private:
    std::atomic<std::uint64_t> version_{0};  // odd: a change is under way
    std::atomic<int> number_{-1};
    std::atomic<std::uint64_t> registrations_{0}, mark_{0};
    std::atomic<std::int64_t> last_{0};
    std::atomic<bool> taken_{true};
    EpollBelief* next_ = nullptr;  // set before it is published

    static inline std::atomic<EpollBelief*> first_{nullptr};
};

void add_epoll_drift_gauge() noexcept;  // once

}  // namespace forkfd
