// Actions on descriptors in the child of every fork(), before any other code runs: plain data,
// and a native at-fork handler that reads it.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "core/base/timing.h"
#include "core/base/unique_fd.h"
#include "core/epoll/epoll_rebuild.h"

namespace forkfd {

class ChildActions {
  public:
    // `redirect`: pairs of number and source; each source is duplicated, so the caller may close
    // it.  `rebuild`: epolls, at numbers of no other action.  Throws std::system_error; then
    // nothing is registered.
    ChildActions(std::vector<int> close, std::vector<int> cloexec,
                 const std::vector<std::pair<int, int>>& redirect,
                 const std::vector<int>& rebuild, int order);
    ChildActions(const ChildActions&) = delete;
    ChildActions& operator=(const ChildActions&) = delete;
    ~ChildActions() { unregister(); }

    void unregister();  // a second call does nothing
    const Timing& timing() const noexcept { return timing_; }

  private:
    struct Redirect {
        int number;
        UniqueFd source;
    };
    void run() noexcept;

    const std::vector<int> close_, cloexec_;
    std::vector<Redirect> redirect_;
    std::vector<EpollRebuild> rebuild_;
    Timing timing_;
    std::atomic<int> id_{0};  // 0: not registered
};

}  // namespace forkfd
