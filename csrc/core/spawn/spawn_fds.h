// The descriptors of one spawn: opens pipes and /dev/null, checks that every source is open, and
// computes the steps that the child executes and the gaps that it closes.
#pragma once

#include <string>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/spawn/spawn_plan.h"

namespace forkfd {

struct PipeEnd {
    int target;  // the number of the child's end
    UniqueFd fd;
};

class SpawnFds {
  public:
    SpawnFds() = default;
    // `sources` replaces the sources of the `descriptor` actions, in their order, unless it is
    // empty.  SysError names the descriptor that is not open.
    SpawnFds(const SpawnPlan& plan, const std::vector<int>& sources,
             const std::vector<int>& used_later);

    void fill(ChildArgs& args) const noexcept;
    std::string describe(int target) const;  // "7 -> child's 3"
    std::vector<PipeEnd> take_pipes() noexcept { return std::move(our_ends_); }

  private:
    int source_for(const FdAction& action, int planned);
    int open_null();
    int open_pipe(const FdAction& action);
    int highest_made() const;
    void add_file_actions(const std::vector<FileAction>& actions);
    void add_gaps();

    std::vector<UniqueFd> child_ends_;  // closed once the child has copies
    std::vector<PipeEnd> our_ends_;
    int null_fd_ = -1;
    std::vector<FdWant> wants_;
    std::vector<FdStep> steps_;
    std::vector<FdRange> gaps_;
    std::vector<int> closed_, targets_;
    std::vector<ChildOpen> opens_;
    std::vector<ChildCopy> copies_;
    unsigned hole_first_ = 0;
    int kept_floor_ = 0;
};

}  // namespace forkfd
