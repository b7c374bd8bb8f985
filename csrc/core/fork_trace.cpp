#include "core/fork_trace.h"

#include <pthread.h>
#include <unistd.h>

#include <system_error>

#include "core/counters.h"
#include "core/trace.h"

namespace forkfd::fork_trace {

namespace {

thread_local std::uint64_t begun = 0;
thread_local pid_t parent = 0;

}  // namespace

void before() noexcept {
    begun = 0;
    if (!trace::on(trace::kFork)) return;
    parent = ::getpid();
    trace::Line("fork", "before");
    begun = trace::now_ns();
}

void in_parent() noexcept {
    count(counters().forked);
    if (trace::on(trace::kFork)) trace::Line("fork", "in_parent").duration(begun);
}

void in_child() noexcept {
    reset_counters();
    if (!trace::on(trace::kFork)) return;
    trace::Line("fork", "in_child").field("parent", parent).duration(begun);
}

void watch_forks() {
    static const int err = ::pthread_atfork(before, in_parent, in_child);
    if (err != 0) throw std::system_error(err, std::generic_category(), "pthread_atfork");
}

}  // namespace forkfd::fork_trace
