#include "core/watch/sysmon.h"

#include <linux/futex.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <system_error>

#include "core/base/counters.h"
#include "core/base/raw_syscall.h"
#include "core/base/signal_mask.h"
#include "core/base/trace.h"
#include "core/watch/dump.h"

namespace forkfd {

namespace {

constexpr std::uint64_t kSecond = 1000000000;
constexpr std::uint64_t kNever = ~std::uint64_t{0} >> 1;
constexpr std::size_t kStack = 256 * 1024;  // faulthandler's handler runs on it

// Waits while the word has that value, for `ns` at most; 0: without limit.
void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t value, std::uint64_t ns) noexcept {
    const timespec time = {static_cast<time_t>(ns / kSecond), static_cast<long>(ns % kSecond)};
    raw::call(SYS_futex, raw::addr(&word), FUTEX_WAIT_PRIVATE, value,
              ns == 0 ? 0 : raw::addr(&time));
}

void futex_wake(std::atomic<std::uint32_t>& word) noexcept {
    raw::call(SYS_futex, raw::addr(&word), FUTEX_WAKE_PRIVATE, 1);
}

long long ms(std::uint64_t ns) noexcept { return static_cast<long long>(ns / 1000000); }

}  // namespace

void Sysmon::start() {
    pthread_attr_t attributes;
    ::pthread_attr_init(&attributes);
    ::pthread_attr_setstacksize(&attributes, kStack);
    int err;
    {
        const AllSignalsBlocked blocked;  // the program's handlers run on its own threads
        err = ::pthread_create(&thread_, &attributes, body, this);
    }
    ::pthread_attr_destroy(&attributes);
    if (err != 0) throw std::system_error(err, std::generic_category(), "start forkfd-sysmon");
    owner_ = ::getpid();
}

void Sysmon::stop() noexcept {
    if (owner_ == ::getpid()) {
        owner_ = 0;
        stopping_ = 1;
        futex_wake(stopping_);
        ::pthread_join(thread_, nullptr);
    }
    const std::uint32_t before = state_.exchange(kStopped);
    if (before != kStopped) stopped_at_work_ = before == kBusy;
    futex_wake(state_);
}

void* Sysmon::body(void* self) noexcept {
    name_this_thread("forkfd-sysmon");
    static_cast<Sysmon*>(self)->run();
    return nullptr;
}

void Sysmon::run() noexcept {
    const SysmonSettings& s = settings_;
    tid_ = static_cast<pid_t>(raw::call(SYS_gettid));
    // Again: libc has unblocked one of its own signals in the new thread.
    const KernelSigset mask = s.dump_signal == 0 ? ~KernelSigset{0} : ~signal_bit(s.dump_signal);
    raw::call(SYS_rt_sigprocmask, SIG_SETMASK, raw::addr(&mask), 0, sizeof mask);
    // Half the shortest bound: a stall of 1.5 times the bound is found for certain.
    std::uint64_t patience = kNever;
    for (const std::uint64_t bound : {s.gil_stall, s.loop_stall})
        if (bound != 0) patience = std::min(patience, bound / 2);
    const bool gauges = s.fd_growth > 0 || *std::max_element(s.gauge_bounds.begin(),
                                                             s.gauge_bounds.end()) >= 0;
    std::uint64_t last = trace::now_ns(), sleep = s.interval;
    const std::uint64_t soon = 2 * s.interval;  // before a summary: it shows recent progress
    std::uint64_t gauges_due = gauges ? last : kNever;
    std::uint64_t probe_due = patience == kNever ? kNever : last;
    std::uint64_t summary = s.summary != 0 ? last + s.summary : kNever;
    gil_moved_at_ = last;
    while (stopping_ == 0) {
        futex_wait(stopping_, 0, sleep);
        const std::uint64_t now = trace::now_ns();
        const std::uint64_t late = now - last - std::min(now - last, sleep);
        const std::uint64_t absent = late > 10 * s.interval ? late : 0;
        last = now;
        check_gil(now, absent);
        check_loops(now, absent);
        if (now >= gauges_due) {
            check_gauges(now);
            gauges_due = now + kSecond;
        }
        if (now >= summary) {
            summarize(now);
            summary = std::max(summary + s.summary, now);
        }
        if (now >= probe_due) {
            probe(now);
            probe_due = now + patience;
        } else if (written_ != taken_ || (summary != kNever && now + soon >= summary)) {
            probe(now);
        }
        // Without an outstanding reply there is nothing to check before the next task.
        const std::uint64_t summary_due = summary > now + soon ? summary - soon : summary;
        const std::uint64_t due = std::min({gauges_due, probe_due, summary_due});
        sleep = is_reply_outstanding() ? s.interval
                                    : std::min(std::max(due - now, s.interval), 10 * kSecond);
    }
}

bool Sysmon::is_reply_outstanding() const noexcept {
    if (state_ == kProbed || written_ != taken_) return true;
    return std::any_of(loops_.begin(), loops_.end(),
                       [](const Loop& loop) { return loop.probed_at != 0 && !loop.reported; });
}

// Does nothing if the helper is busy, or has not replied yet.
void Sysmon::probe(std::uint64_t now) noexcept {
    if (state_ != kWaiting) return;
    probed_at_ = now;  // before: the reply may come at once
    std::uint32_t waiting = kWaiting;
    if (state_.compare_exchange_strong(waiting, kProbed)) futex_wake(state_);
}

void Sysmon::check_gil(std::uint64_t now, std::uint64_t absent) noexcept {
    std::uint32_t probed = kProbed;
    if (settings_.gil_stall == 0 || state_ != probed) return;
    if (absent != 0) probed_at_ += absent;
    const std::uint64_t since = probed_at_;
    if (now < since + settings_.gil_stall) return;
    if (!state_.compare_exchange_strong(probed, kStalled)) return;  // just replied
    if (trace::on(trace::kSched)) trace::Line("sched", "gil_stalled").duration(since);
    dump();
}

void Sysmon::check_loops(std::uint64_t now, std::uint64_t absent) noexcept {
    if (settings_.loop_stall == 0) return;
    for (int slot = 0; slot < kMaxLoops; ++slot) {
        Loop& loop = loops_[static_cast<std::size_t>(slot)];
        std::uint64_t since = loop.probed_at;
        if (since == 0 || loop.reported) continue;
        if (absent != 0 && loop.probed_at.compare_exchange_strong(since, since + absent))
            since += absent;
        if (since == 0 || now < since + settings_.loop_stall) continue;
        loop.reported = true;
        if (trace::on(trace::kSched))
            trace::Line("sched", "loop_stalled").field("loop", slot).duration(since);
        report({SysmonEvent::Kind::loop_stalled, slot, 0, now - since});
        dump();
    }
}

void Sysmon::check_gauges(std::uint64_t now) noexcept {
    if (settings_.fd_growth > 0) {
        const std::int64_t open = count_descriptors();
        const std::uint64_t over = now - grown_since_;
        const double allowed = settings_.fd_growth * static_cast<double>(over) / kSecond;
        if (open >= 0 && descriptors_ >= 0 && static_cast<double>(open - descriptors_) > allowed)
            report({SysmonEvent::Kind::fd_growth, static_cast<int>(open - descriptors_), open,
                    over});
        descriptors_ = open;
        grown_since_ = now;
    }
    for (int i = 0; i < gauge_count(); ++i) {
        const auto at = static_cast<std::size_t>(i);
        if (settings_.gauge_bounds[at] == kNoBound) continue;
        const std::int64_t value = gauge(i).read(gauge(i).context);
        const bool beyond = value > settings_.gauge_bounds[at];
        if (beyond && !beyond_[at]) report({SysmonEvent::Kind::gauge, i, value, 0});
        beyond_[at] = beyond;
    }
}

void Sysmon::report(const SysmonEvent& event) noexcept {
    const std::uint32_t at = written_;
    if (at - taken_ == ring_.size()) return;
    ring_[at % ring_.size()] = event;
    written_ = at + 1;
}

void Sysmon::dump() const noexcept {
    if (settings_.dump_signal == 0) return;
    const int err = dump_in_a_copy(settings_.dump_signal, stopping_);
    if (err != 0 && trace::on(trace::kSched))
        trace::Line("sched", "dump_failed").field("errno", err);
}

void Sysmon::summarize(std::uint64_t now) const noexcept {
    const auto relaxed = [](const std::atomic<std::uint64_t>& counter) {
        return static_cast<long long>(counter.load(std::memory_order_relaxed));
    };
    const Counters& c = counters();
    trace::Line line("sched", "summary");
    for (int i = 0; i < gauge_count(); ++i)
        if (const std::int64_t value = gauge(i).read(gauge(i).context); value >= 0)
            line.field(gauge(i).name, value);
    line.field("spawned", relaxed(c.spawned)).field("failed", relaxed(c.failed));
    line.field("forked", relaxed(c.forked));
    const std::uint64_t moved = gil_moved_at_;
    line.field("gil_ms", now > moved ? ms(now - moved) : 0);
    std::uint64_t oldest = 0;
    for (const Loop& loop : loops_)
        if (const std::uint64_t at = loop.moved_at; at != 0)
            oldest = oldest == 0 ? at : std::min(oldest, at);
    if (oldest != 0) line.field("loop_ms", now > oldest ? ms(now - oldest) : 0);
}

bool Sysmon::begin_wait() noexcept {
    std::uint32_t busy = kBusy;
    return state_.compare_exchange_strong(busy, kWaiting);
}

// An event reported before begin_wait() is seen at the thread's next poll.
void Sysmon::wait() noexcept {
    while (state_ == kWaiting) futex_wait(state_, kWaiting, 0);
}

std::optional<SysmonEvent> Sysmon::take() noexcept {
    const std::uint64_t now = trace::now_ns();
    gil_moved_at_ = now;
    std::uint32_t state = state_;
    while (state != kStopped && !state_.compare_exchange_weak(state, kBusy)) {}
    if (state == kStalled)
        return SysmonEvent{SysmonEvent::Kind::gil_stalled, 0, 0, now - probed_at_};
    if (const std::uint32_t at = taken_; at != written_) {
        const SysmonEvent event = ring_[at % ring_.size()];
        taken_ = at + 1;
        return event;
    }
    if (state == kStopped) return std::nullopt;
    return SysmonEvent{};
}

void Sysmon::loop_probed(int slot) noexcept {
    Loop& loop = loops_[static_cast<std::size_t>(slot)];
    loop.reported = false;
    std::uint64_t none = 0;
    loop.moved_at.compare_exchange_strong(none, trace::now_ns());
    loop.probed_at = trace::now_ns();
}

void Sysmon::loop_replied(int slot) noexcept {
    Loop& loop = loops_[static_cast<std::size_t>(slot)];
    loop.probed_at = 0;
    loop.moved_at = trace::now_ns();
}

void Sysmon::loop_forgotten(int slot) noexcept {
    Loop& loop = loops_[static_cast<std::size_t>(slot)];
    loop.probed_at = 0;
    loop.moved_at = 0;
}

void name_this_thread(const char* name) noexcept {
    raw::call(SYS_prctl, PR_SET_NAME, raw::addr(name));
}

int unused_signal() noexcept {
    KernelSigaction action = {};
    for (int sig = kLastSignal; sig > 34; --sig) {  // libc uses some below
        if (raw::call(SYS_rt_sigaction, sig, 0, raw::addr(&action), sizeof action.mask) != 0)
            continue;
        if (action.handler == 0) return sig;
    }
    return 0;
}

}  // namespace forkfd
