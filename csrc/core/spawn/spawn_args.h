// What a plan says, laid out as the block that the child reads.
#pragma once

#include "core/spawn/child_args.h"
#include "core/spawn/spawn_plan.h"

namespace forkfd {

// All that needs nothing but the plan, which must outlive the block: it points into it.
void copy_plan(const SpawnPlan& plan, ChildArgs& args);

}  // namespace forkfd
