#include "core/fork/child_actions.h"

#include <fcntl.h>

#include "core/atfork/atfork.h"
#include "core/base/raw_syscall.h"
#include "core/descriptors/descriptor.h"

namespace forkfd {

ChildActions::ChildActions(std::vector<int> close, std::vector<int> cloexec,
                           const std::vector<std::pair<int, int>>& redirect,
                           const std::vector<int>& rebuild, int order)
    : close_(std::move(close)), cloexec_(std::move(cloexec)) {
    for (const int epfd : rebuild) {
        demand_epoll(epfd);
        rebuild_.push_back({epfd});
    }
    std::vector<int> numbers;
    for (const auto& [number, source] : redirect) {
        demand_below_limit(number);
        numbers.push_back(number);
    }
    for (const auto& [number, source] : redirect)
        redirect_.push_back({number, duplicate_beside(source, numbers)});
    id_ = add_native({nullptr, nullptr,
                      [](void* self) noexcept { static_cast<ChildActions*>(self)->run(); }, this},
                     order);
}

void ChildActions::unregister() {
    const int id = id_.exchange(0);
    if (id == 0) return;
    remove_native(id);
    redirect_.clear();
}

void ChildActions::run() noexcept {
    const int saved = errno;
    const auto start = Timing::now();
    bool failed = false;
    for (const Redirect& r : redirect_)
        if (replace(r.number, r.source.get(), false) != 0) failed = true;
    // A number that is not open is no failure: it is closed, and not inherited.
    for (const int fd : close_) raw::call(SYS_close, fd);
    for (const int fd : cloexec_) raw::call(SYS_fcntl, fd, F_SETFD, FD_CLOEXEC);
    // Last: new epolls watch the descriptors that remain.
    if (!rebuild_epolls(rebuild_.data(), rebuild_.size())) failed = true;
    timing_.add(Timing::now() - start, failed);
    errno = saved;
}

}  // namespace forkfd
