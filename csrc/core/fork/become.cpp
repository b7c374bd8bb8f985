#include "core/fork/become.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>

#include "core/descriptors/descriptor.h"
#include "core/spawn/child.h"

namespace forkfd {

void become(const SpawnPlan& plan, const std::vector<int>& sources, const Kinship& kin,
            int report_fd) {
    Report report = {};
    // Never destroyed: apply() closes its descriptors, or puts others at their numbers.
    auto* const prepared =
        new PreparedChild(plan, Environment(std::vector<std::string>()), sources,
                          current_signal_mask(), kin);
    prepared->args.report = &report;
    prepared->args.report_fd = report_fd;
    child::apply(prepared->args);
    for (const FdAction& action : plan.fds)
        if (action.target > 2) ::fcntl(action.target, F_SETFD, FD_CLOEXEC);
}

int keep_open(SpawnPlan& plan, const std::vector<int>& held, int reply) {
    int highest = 2;
    for (const int fd : held) highest = std::max(highest, fd);
    for (const FdAction& action : plan.fds) highest = std::max(highest, action.target);
    const int number = ::fcntl(reply, F_DUPFD_CLOEXEC, highest + 1);
    if (number < 0) throw_errno(errno, "duplicate the reply");
    const auto keep = [&plan](int fd) {
        plan.fds.push_back({fd, FdAction::Kind::inherit_if_open, -1, {}, 0, 0});
    };
    for (const int fd : held) keep(fd);
    keep(number);
    std::sort(plan.fds.begin(), plan.fds.end(),
              [](const FdAction& a, const FdAction& b) { return a.target < b.target; });
    return number;
}

std::string failed_on(const SpawnPlan& plan, const std::vector<int>& sources, Stage stage,
                      int index) {
    try {
        return PreparedChild(plan, Environment(std::vector<std::string>()), sources, 0,
                             {0, -1, false})
            .subject(stage, index);
    } catch (const SysError& e) {  // a descriptor or a terminal is gone since
        return e.subject();
    }
}

}  // namespace forkfd
