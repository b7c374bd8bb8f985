// A plan as plain values, from which a zygote, another process, makes the same plan.
#pragma once

#include <pybind11/pybind11.h>

#include "core/spawn/spawn_plan.h"

// The fields that Python reads and writes by their own names.
#define FORKFD_PLAN_FIELDS(X)                                                                  \
    X(argv) X(candidates) X(exec_fd) X(program) X(env) X(close_others) X(listen_names)         \
    X(new_session) X(process_group) X(controlling_terminal) X(controlling_terminal_path)       \
    X(foreground_terminal) X(foreground_terminal_path) X(umask) X(nice) X(affinity)            \
    X(scheduler_policy) X(scheduler_priority) X(chroot) X(groups) X(gid) X(uid) X(user_name)   \
    X(group_name) X(bounding) X(permitted) X(inheritable) X(ambient) X(cwd) X(cwd_fd)          \
    X(no_new_privs) X(death_signal) X(death_with_process) X(namespaces) X(cgroup_path)         \
    X(cgroup_fd) X(seccomp) X(signal_mask) X(default_signals) X(ignore_signals) X(wants_pidfd)

// (fields that differ from a fresh plan, descriptor actions, limits); not the id maps.
pybind11::tuple state_of_plan(const forkfd::SpawnPlan& plan);
forkfd::SpawnPlan plan_of_state(const pybind11::tuple& state);
