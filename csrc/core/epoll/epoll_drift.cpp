#include "core/epoll/epoll_drift.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>

#include "core/base/gauges.h"
#include "core/base/raw_syscall.h"
#include "core/epoll/epoll_rebuild.h"

namespace forkfd {

EpollBelief& EpollBelief::take() {
    for (EpollBelief* b = first_; b != nullptr; b = b->next_)
        if (!b->taken_.exchange(true)) return *b;
    auto* const made = new EpollBelief;
    made->next_ = first_;
    while (!first_.compare_exchange_weak(made->next_, made)) {}
    return *made;
}

void EpollBelief::give_back() noexcept {
    begin();
    end(-1, 0, 0);
    last_ = 0;
    taken_ = false;
}

std::int64_t EpollBelief::drift() noexcept {
    for (int tries = 0; tries < 3; ++tries) {
        const std::uint64_t before = version_;
        if (before % 2 != 0) continue;
        const int number = number_;
        const std::uint64_t known = registrations_;
        std::uint64_t watched = 0, lost = 0, mark = mark_;
        const auto see = [&](const EpollWatch& watch) noexcept {
            ++watched;
            mark ^= watch.data;
            if (!is_watched_file(number, watch, watch.number)) ++lost;
        };
        const int err = number < 0 ? 0 : each_watch(number, see);
        const bool closed = err == ENOENT && raw::call(SYS_fcntl, number, F_GETFD) == -EBADF;
        if (version_ != before) continue;
        if (err != 0 && !closed) return last_ = -1;
        const std::uint64_t missing = std::max(known, watched) - std::min(known, watched);
        const std::uint64_t other = watched != 0 && mark != 0 ? 1 : 0;
        return last_ = static_cast<std::int64_t>(std::max({lost, missing, other}));
    }
    return last_;  // changed during every attempt
}

std::int64_t EpollBelief::all() noexcept {
    std::int64_t sum = 0;
    for (EpollBelief* b = first_; b != nullptr; b = b->next_) {
        const std::int64_t drift = b->drift();
        if (drift < 0) return -1;
        sum += drift;
    }
    return sum;
}

void add_epoll_drift_gauge() noexcept {
    add_gauge({"epoll_drift", [](void*) noexcept { return EpollBelief::all(); }, nullptr});
}

}  // namespace forkfd
