// The options of a plan applied to the calling process, which continues without an exec: a worker
// that a zygote has just cloned.
#pragma once

#include <string>
#include <vector>

#include "core/spawn/prepared.h"

namespace forkfd {

// Applies the plan to the calling process, which must have one thread, by the code that every
// child runs between clone and exec.  Afterwards the descriptors of the map above 2 are
// close-on-exec, and all others are closed.  SysError before the first change; a later failure
// is written as a Report to `report_fd`, which the plan must leave open, and ends the process.
void become(const SpawnPlan& plan, const std::vector<int>& sources, const Kinship& kin,
            int report_fd);

// Adds `held` to the plan, to stay open, and a duplicate of `reply`; returns the duplicate's
// number, which no other descriptor of the plan has.
int keep_open(SpawnPlan& plan, const std::vector<int>& held, int reply);

// The subject of a reported failure, in words: as PreparedChild::subject() returns it.
std::string failed_on(const SpawnPlan& plan, const std::vector<int>& sources, Stage stage,
                      int index);

}  // namespace forkfd
