// The options of a plan, copied into the block that the child reads.
#pragma once

#include "core/spawn/child_args.h"
#include "core/spawn/spawn_plan.h"

namespace forkfd {

// Copies all fields that depend on the plan alone; the block points into the plan.
void copy_plan(const SpawnPlan& plan, ChildArgs& args);

// Whether the child may wait for another process before its exec.
bool may_wait(const SpawnPlan& plan);

}  // namespace forkfd
