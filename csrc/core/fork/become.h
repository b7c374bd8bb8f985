// The options of a plan for a process that is there already, and goes on without an exec: a
// worker that a zygote has just cloned.
#pragma once

#include <string>
#include <vector>

#include "core/spawn/prepared.h"

namespace forkfd {

// Applies the plan to the calling process, which must have one thread, by the code that every
// child runs between clone and exec.  What the map names above 2 is close-on-exec afterwards,
// and what it does not name is closed.  SysError where nothing is changed yet; later failures
// are reported (`report_fd`, which the plan must keep open: a Report) and end the process.
void become(const SpawnPlan& plan, const std::vector<int>& sources, const Kinship& kin,
            int report_fd);

// Has the plan leave open `held`, and a duplicate of `answer` that has a number of its own,
// which it returns.
int keep_open(SpawnPlan& plan, const std::vector<int>& held, int answer);

// What a reported failure was about, in words: like PreparedChild::subject.
std::string failed_on(const SpawnPlan& plan, const std::vector<int>& sources, Stage stage,
                      int index);

}  // namespace forkfd
