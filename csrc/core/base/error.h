// The stages at which a spawn can fail, in the order in which they run, and the exception that
// names one.  A Stage travels from the child as a number; its text is for people.
#pragma once

#include <exception>
#include <string>

// X(name, text): "spawn /srv/worker: <text>: <subject>: <strerror>"
#define FORKFD_STAGES(X)                                                                    \
    X(descriptor_source, "find descriptor to pass")   /* parent, before the clone */        \
    X(open_null, "open /dev/null")                                                          \
    X(make_pipe, "make pipe")                                                               \
    X(open_resource, "open")                                                                \
    X(child_stack, "map child stack")                                                       \
    X(helper_thread, "start helper thread")                                                 \
    X(clone, "clone")                                                                       \
    X(pidfd, "open pidfd")                                                                  \
    X(parent_alive, "check that the parent lives")    /* child, in this order */            \
    X(cgroup, "enter cgroup")                                                               \
    X(id_maps, "write user namespace maps")                                                 \
    X(session, "start session")                                                             \
    X(process_group, "set process group")                                                   \
    X(controlling_terminal, "set controlling terminal")                                     \
    X(foreground, "set foreground process group")                                           \
    X(unshare_descriptors, "unshare descriptor table")                                      \
    X(keep_descriptor, "keep descriptor for later")                                         \
    X(map_descriptor, "map descriptor")                                                     \
    X(close_others, "close other descriptors")                                              \
    X(open_file, "open file")                                                               \
    X(umask, "set umask")                                                                   \
    X(resource_limit, "set resource limit")                                                 \
    X(nice, "set nice value")                                                               \
    X(affinity, "set CPU affinity")                                                         \
    X(scheduler, "set scheduler")                                                           \
    X(chroot, "change root directory")                                                      \
    X(bounding_set, "limit capability bounding set")                                        \
    X(keep_capabilities, "keep capabilities across the change of user")                     \
    X(groups, "set supplementary groups")                                                   \
    X(group, "set group")                                                                   \
    X(user, "set user")                                                                     \
    X(capabilities, "set capabilities")                                                     \
    X(ambient_set, "set ambient capabilities")                                              \
    X(working_directory, "change directory")                                                \
    X(no_new_privs, "set no_new_privs")                                                     \
    X(parent_death_signal, "set parent death signal")                                       \
    X(default_signals, "reset signal to default")                                           \
    X(ignore_signals, "ignore signal")                                                      \
    X(environment, "write LISTEN_PID and LISTEN_PIDFDID")                                   \
    X(signal_mask, "set signal mask")                                                       \
    X(seccomp, "install seccomp filter")                                                    \
    X(exec, "execute")

namespace forkfd {

enum class Stage : int {
    none = 0,
#define FORKFD_X(name, text) name,
    FORKFD_STAGES(FORKFD_X)
#undef FORKFD_X
    count
};

const char* stage_name(Stage stage) noexcept;  // "map_descriptor"
const char* stage_text(Stage stage) noexcept;  // "map descriptor"
Stage stage_named(const std::string& name);    // std::invalid_argument if there is none

// A failed kernel call: its stage, its subject and its errno.
class SysError : public std::exception {
  public:
    SysError(Stage stage, int err, std::string subject);
    const char* what() const noexcept override { return text_.c_str(); }
    Stage stage() const noexcept { return stage_; }
    int err() const noexcept { return err_; }
    const std::string& subject() const noexcept { return subject_; }

  private:
    Stage stage_;
    int err_;
    std::string subject_;
    std::string text_;
};

[[noreturn]] void throw_sys(Stage stage, int err, std::string subject);

}  // namespace forkfd
