// The gauge epoll_drift: what our epolls believe in, beside what the kernel watches, read by
// a thread that takes no lock.
#pragma once

#include <atomic>
#include <cstdint>

namespace forkfd {

// What one EpollSet believes, where anybody may look.  Its owner brackets each change with
// begin() and end(), which exclude each other and not the reader: it sees that it was
// disturbed, and looks again.
class EpollBelief {
  public:
    static EpollBelief& take();  // std::bad_alloc
    void give_back() noexcept;   // never freed, since somebody may look at it: taken anew

    void begin() noexcept { version_ = version_ | 1; }
    // `mark` is the exclusive or of the data of all registrations; number -1: no instance.
    void end(int number, std::uint64_t registrations, std::uint64_t mark) noexcept {
        number_ = number;
        registrations_ = registrations;
        mark_ = mark;
        version_ = (version_ | 1) + 1;
    }

    // At least so many registrations differ from the kernel's view: those whose number is
    // closed or another file here, or those that only one of both has.  -1: it cannot be known.
    std::int64_t drift() noexcept;
    static std::int64_t all() noexcept;

  private:
    std::atomic<std::uint64_t> version_{0};  // odd: it changes
    std::atomic<int> number_{-1};
    std::atomic<std::uint64_t> registrations_{0}, mark_{0};
    std::atomic<std::int64_t> last_{0};
    std::atomic<bool> taken_{true};
    EpollBelief* next_ = nullptr;  // set before it is published

    static inline std::atomic<EpollBelief*> first_{nullptr};
};

void add_epoll_drift_gauge() noexcept;  // once

}  // namespace forkfd
