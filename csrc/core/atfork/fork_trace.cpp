#include "core/atfork/fork_trace.h"

#include <unistd.h>

#include <limits>

#include "core/atfork/atfork.h"
#include "core/base/counters.h"
#include "core/base/fork_page.h"
#include "core/base/trace.h"

namespace forkfd::fork_trace {

namespace {

thread_local std::uint64_t begun = 0;
thread_local pid_t parent = 0;

}  // namespace

void before() noexcept {
    if (begun != 0) begun = 0;  // a page that is not written costs no fault
    if (!trace::on(trace::kFork)) return;
    parent = ::getpid();
    trace::Line("fork", "before");
    begun = trace::now_ns();
}

void in_parent() noexcept {
    count(counters().forked);
    if (trace::on(trace::kFork)) trace::Line("fork", "in_parent").duration(begun);
}

FORKFD_IN_CHILD void in_child() noexcept {
    reset_counters();
    if (!trace::on(trace::kFork)) return;
    trace::Line("fork", "in_child").field("parent", parent).duration(begun);
}

namespace {

FORKFD_IN_CHILD void handle_in_child(void*) noexcept { in_child(); }

}  // namespace

void watch_forks() {
    // First before a fork and last after it: the duration includes all other handlers.
    static const int once = add_native({[](void*) noexcept { before(); },
                                        [](void*) noexcept { in_parent(); },
                                        handle_in_child, nullptr},
                                       std::numeric_limits<int>::max());
    (void)once;
}

}  // namespace forkfd::fork_trace
