#include "core/epoll/live_sets.h"

#include <cerrno>
#include <new>
#include <utility>

#include "core/atfork/atfork.h"
#include "core/base/fork_page.h"
#include "core/base/trace.h"
#include "core/epoll/epoll_drift.h"

namespace forkfd {

namespace {

FORKFD_IN_CHILD void sets_in_child(void* sets) noexcept {
    static_cast<LiveSets*>(sets)->in_child();
}

}  // namespace

LiveSets::LiveSets() {
    add_native({[](void* sets) noexcept { static_cast<LiveSets*>(sets)->before(); },
                [](void* sets) noexcept { static_cast<LiveSets*>(sets)->in_parent(); },
                sets_in_child, this});
    add_epoll_drift_gauge();
}

// No other thread is inside a change while the process forks; none needs the GIL, or the list, to
// leave one.  If this thread is inside, a signal handler forks in the middle of the change.
void LiveSets::before() noexcept {
    if (depth++ != 0) return;
    for (EpollSet* s = first; s != nullptr; s = s->next_)
        if (!(s->torn_ = s->lock_.mine())) s->lock_.lock();
}

FORKFD_IN_CHILD void LiveSets::in_parent() noexcept {
    if (--depth != 0) return;
    for (EpollSet* s = first; s != nullptr; s = s->next_)
        if (!std::exchange(s->torn_, false)) s->lock_.unlock();
}

// Nothing here allocates or waits.  All instances are new before any is filled: one may
// watch another.
FORKFD_IN_CHILD void LiveSets::in_child() noexcept {
    const std::uint64_t begun = trace::on(trace::kEpoll) ? trace::now_ns() : 0;
    for (EpollSet* s = first; s != nullptr; s = s->next_) s->renew();
    for (EpollSet* s = first; s != nullptr; s = s->next_) {
        if (s->torn_) s->broken_ = EDEADLK;
        s->refill(begun);
        s->waiters_ = 0;  // those threads are not in this process
        s->publish();
    }
    in_parent();
}

void LiveSets::insert(EpollSet* s) {
    const NoForkNow still;
    s->next_ = first;
    if (first != nullptr) first->previous_ = s;
    first = s;
}

void LiveSets::erase(EpollSet* s) {
    const NoForkNow still;
    (s->previous_ != nullptr ? s->previous_->next_ : first) = s->next_;
    if (s->next_ != nullptr) s->next_->previous_ = s->previous_;
}

LiveSets& live_sets() {
    alignas(LiveSets) FORKFD_FORK_PAGE static unsigned char place[sizeof(LiveSets)];
    static LiveSets* const sets = new (place) LiveSets;  // never destroyed: threads may still fork
    return *sets;
}

}  // namespace forkfd
