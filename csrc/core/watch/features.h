// The facilities of the running kernel: each is found out by using it once, with no lasting
// effect.  For people and for the doctor; a spawn finds out by itself (probe.h).
#pragma once

#include <vector>

namespace forkfd {

struct Feature {
    const char* name;
    int err;  // 0: available; else the errno of the kernel, or of a filter in front of it
};

// Starts a few children that do nothing, on a copy of the page tables.  CLONE_INTO_CGROUP is
// tried on `cgroup_fd`, the directory of a cgroup, unless it is negative.
std::vector<Feature> probe_features(int cgroup_fd);

}  // namespace forkfd
