// A thread that watches the process without the GIL, and a helper thread of the caller that it
// communicates with.
//
// Progress is checked by probes: the thread wakes the helper, which must take the GIL to reply;
// the helper probes each loop, which must run a callback to reply.  The time that a reply is
// outstanding is the time without progress.  So neither costs anything between two probes, and
// neither an idle main thread nor an idle loop counts as stuck.  The thread polls every
// `interval` while a reply is outstanding, and sleeps until the next probe otherwise.  Time in
// which this thread did not run either (SIGSTOP, no processor) is subtracted.
//
// The thread makes raw system calls, allocates nothing and takes no lock, so a fork at any
// moment leaves nothing locked.  It does not run in the child; stop() and start() there begin
// anew.
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

struct SysmonSettings {  // nanoseconds; 0: off
    std::uint64_t interval = 20000000;
    std::uint64_t gil_stall = 0, loop_stall = 0, summary = 0;
    double fd_growth = 0;  // descriptors per second
    std::array<std::int64_t, kMaxGauges> gauge_bounds = no_bounds();
    int dump_signal = 0;   // its handler dumps stacks (dump.h)
};

struct SysmonEvent {
    enum class Kind : int { turn, fd_growth, gil_stalled, loop_stalled, gauge };
    Kind kind = Kind::turn;  // turn: the helper has shown progress, and probes the loops
    int index = 0;           // of the loop or gauge
    std::int64_t value = 0;  // descriptors or gauge
    std::uint64_t ns = 0;    // time without progress, or the time of the growth
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

    // The helper's turn: unless begin_wait() returns false (the monitor is stopped), wait() sleeps
    // without the GIL until there is an event; then take(), with the GIL, returns it.
    // std::nullopt: the monitor is stopped.
    bool begin_wait() noexcept;
    void wait() noexcept;
    std::optional<SysmonEvent> take() noexcept;
    // Whether the helper was busy when the monitor was stopped: it does not wait any more.
    bool stopped_at_work() const noexcept { return stopped_at_work_; }

    // A probe of a loop was sent, by the loop's slot (below kMaxLoops); it has replied.
    void loop_probed(int slot) noexcept;
    void loop_replied(int slot) noexcept;
    void loop_forgotten(int slot) noexcept;

  private:
    enum State : std::uint32_t { kBusy, kWaiting, kProbed, kStalled, kStopped };
    struct Loop {
        std::atomic<std::uint64_t> probed_at{0};  // 0: no reply is outstanding
        std::atomic<std::uint64_t> moved_at{0};
        std::atomic<bool> reported{false};
    };

    static void* body(void* self) noexcept;
    void run() noexcept;
    bool is_reply_outstanding() const noexcept;
    void check_gil(std::uint64_t now, std::uint64_t absent) noexcept;
    void check_loops(std::uint64_t now, std::uint64_t absent) noexcept;
    void check_gauges(std::uint64_t now) noexcept;
    void probe(std::uint64_t now) noexcept;
    void report(const SysmonEvent& event) noexcept;
    void dump() const noexcept;
    void summarize(std::uint64_t now) const noexcept;

    const SysmonSettings settings_;
    pthread_t thread_ = {};
    pid_t owner_ = 0;  // 0: not running
    std::atomic<pid_t> tid_{0};
    std::atomic<std::uint32_t> stopping_{0};  // a futex, as state_ is
    std::atomic<std::uint32_t> state_{kBusy};
    std::atomic<bool> stopped_at_work_{false};
    std::atomic<std::uint64_t> probed_at_{0}, gil_moved_at_{0};
    std::array<Loop, kMaxLoops> loops_;

    // Events from the thread to the helper; those that do not fit are dropped.
    std::array<SysmonEvent, 64> ring_ = {};
    std::atomic<std::uint32_t> written_{0}, taken_{0};

    // Accessed by the thread alone.
    std::uint64_t grown_since_ = 0;
    std::int64_t descriptors_ = -1;
    std::array<bool, kMaxGauges> beyond_ = {};
};

void name_this_thread(const char* name) noexcept;

// The highest real-time signal without a handler; 0: all have one.
int unused_signal() noexcept;

}  // namespace forkfd
