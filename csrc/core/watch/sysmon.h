// A thread that watches the process without the GIL, and a helper of the caller's that it
// talks to.
//
// Whether something moves is found out by asking: the thread wakes the helper, which must
// take the GIL to answer; the helper asks each loop, which must run a callback to answer.
// The time that an answer is outstanding is the time that nothing moved.  So neither costs
// anything between two questions, and neither an idle main thread nor an idle loop counts
// as stuck.  The thread looks every `interval` while an answer is outstanding, and sleeps
// until the next question otherwise.  Time in which this thread did not run either (SIGSTOP, no processor) is taken
// off.
//
// The thread makes raw system calls, allocates nothing and takes no lock, so a fork at any
// moment leaves nothing locked.  In the child it does not run; stop() and start() there
// begin anew.
#pragma once

#include <pthread.h>
#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>

#include "core/base/gauges.h"

namespace forkfd {

constexpr std::int64_t kNoBound = -1;
constexpr std::array<std::int64_t, kMaxGauges> no_bounds() {
    std::array<std::int64_t, kMaxGauges> bounds = {};
    for (std::int64_t& bound : bounds) bound = kNoBound;
    return bounds;
}

struct SysmonSettings {  // nanoseconds; 0: not wanted
    std::uint64_t interval = 20000000;
    std::uint64_t gil_stall = 0, loop_stall = 0, summary = 0;
    double fd_growth = 0;  // descriptors per second
    std::array<std::int64_t, kMaxGauges> gauge_bounds = no_bounds();
    int dump_signal = 0;   // its handler dumps stacks (dump.h)
};

struct SysmonEvent {
    enum class Kind : int { turn, fd_growth, gil_stalled, loop_stalled, gauge };
    Kind kind = Kind::turn;  // turn: show that you move, and ask the loops
    int index = 0;           // of the loop or gauge
    std::int64_t value = 0;  // descriptors or gauge
    std::uint64_t ns = 0;    // how long it has not moved, or over what it grew
};

class Sysmon {
  public:
    static constexpr int kMaxLoops = 16;

    explicit Sysmon(const SysmonSettings& settings) noexcept : settings_(settings) {}
    ~Sysmon() { stop(); }
    Sysmon(const Sysmon&) = delete;
    Sysmon& operator=(const Sysmon&) = delete;

    void start();          // std::system_error; once
    void stop() noexcept;  // ends the thread, and wait() returns; does nothing after a fork
    pid_t tid() const noexcept { return tid_; }

    // The helper's turn: unless begin_wait() says that it is over, wait() sleeps without the
    // GIL until there is something; then, with the GIL, take() says what.  std::nullopt: it
    // is over.
    bool begin_wait() noexcept;
    void wait() noexcept;
    std::optional<SysmonEvent> take() noexcept;
    // It was at work when it was stopped: it will not wait for the GIL any more.
    bool stopped_at_work() const noexcept { return stopped_at_work_; }

    // A loop has been asked (its slot, below kMaxLoops), and has answered.
    void loop_asked(int slot) noexcept;
    void loop_answered(int slot) noexcept;
    void loop_forgotten(int slot) noexcept;

  private:
    enum State : std::uint32_t { kBusy, kWaiting, kAsked, kStalled, kStopped };
    struct Loop {
        std::atomic<std::uint64_t> asked_at{0};  // 0: no question is open
        std::atomic<std::uint64_t> moved_at{0};
        std::atomic<bool> told{false};
    };

    static void* body(void* self) noexcept;
    void run() noexcept;
    bool something_is_open() const noexcept;
    void look_at_gil(std::uint64_t now, std::uint64_t absent) noexcept;
    void look_at_loops(std::uint64_t now, std::uint64_t absent) noexcept;
    void look_at_gauges(std::uint64_t now) noexcept;
    void ask(std::uint64_t now) noexcept;
    void tell(const SysmonEvent& event) noexcept;
    void dump() const noexcept;
    void summarize(std::uint64_t now) const noexcept;

    const SysmonSettings settings_;
    pthread_t thread_ = {};
    pid_t owner_ = 0;  // 0: not running
    std::atomic<pid_t> tid_{0};
    std::atomic<std::uint32_t> stopping_{0};  // a futex, as state_ is
    std::atomic<std::uint32_t> state_{kBusy};
    std::atomic<bool> stopped_at_work_{false};
    std::atomic<std::uint64_t> asked_at_{0}, gil_moved_at_{0};
    std::array<Loop, kMaxLoops> loops_;

    // From the thread to the helper; what does not fit is dropped.
    std::array<SysmonEvent, 64> ring_ = {};
    std::atomic<std::uint32_t> written_{0}, taken_{0};

    // The thread's own.
    std::uint64_t grown_since_ = 0;
    std::int64_t descriptors_ = -1;
    std::array<bool, kMaxGauges> beyond_ = {};
};

void name_this_thread(const char* name) noexcept;

// The highest real-time signal that nothing handles; 0: there is none.
int unused_signal() noexcept;

}  // namespace forkfd
