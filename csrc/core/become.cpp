#include "core/become.h"

#include <fcntl.h>

#include "core/child.h"

namespace forkfd {

void become(const SpawnPlan& plan, const std::vector<int>& sources, const Kinship& kin,
            int report_fd) {
    Report report = {};
    // Never destroyed: the numbers of its descriptors are closed by then, or mean others.
    auto* const prepared =
        new PreparedChild(plan, Environment(std::vector<std::string>()), sources,
                          current_signal_mask(), kin);
    prepared->args.report = &report;
    prepared->args.report_fd = report_fd;
    child::apply(prepared->args);
    for (const FdAction& action : plan.fds)
        if (action.target > 2) ::fcntl(action.target, F_SETFD, FD_CLOEXEC);
}

std::string failed_on(const SpawnPlan& plan, const std::vector<int>& sources, Stage stage,
                      int index) {
    try {
        return PreparedChild(plan, Environment(std::vector<std::string>()), sources, 0,
                             {0, -1, false})
            .subject(stage, index);
    } catch (const SysError& e) {  // gone since: a descriptor, a terminal
        return e.subject();
    }
}

}  // namespace forkfd
