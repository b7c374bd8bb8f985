// The writer of uid_map and gid_map for a child in a new user namespace.  The child itself may
// write only a map of its own ids (user_namespaces(7)), and the thread that cloned it sleeps in
// the kernel until the exec: so a helper thread waits for the child's request.
#pragma once

#include <string>
#include <thread>
#include <vector>

#include "core/spawn/child_args.h"
#include "core/spawn/spawn_plan.h"

namespace forkfd {

class IdMapWriter {
  public:
    // `pidfd` is set by the clone, before the child can send its request.
    IdMapWriter(const SpawnPlan& plan, Report& report, const int& pidfd);
    ~IdMapWriter();  // cancels a request that has not begun, and joins
    const std::string& subject() const noexcept { return subject_; }  // after a failure

  private:
    void serve(const int& pidfd);
    int write_maps(int pidfd);

    const SpawnPlan& plan_;
    Report& report_;
    std::string subject_ = "uid_map, gid_map";
    std::thread thread_;
};

}  // namespace forkfd
