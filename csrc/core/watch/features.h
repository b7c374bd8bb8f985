// Which facilities of the kernel there are here: each is found out by using it once, with
// no lasting effect.  For people and for the doctor; a spawn learns by itself (probe.h).
#pragma once

#include <vector>

namespace forkfd {

struct Feature {
    const char* name;
    int err;  // 0: it is there; else what the kernel, or a filter in front of it, answers
};

// Starts a few children that do nothing, on a copy of the page tables.  into_cgroup is
// tried on the directory of a cgroup, if one is given.
std::vector<Feature> probe_features(int cgroup_fd);

}  // namespace forkfd
