#include "core/fork/forked.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "core/base/pidfd.h"
#include "core/base/raw_syscall.h"
#include "core/descriptors/descriptor.h"

namespace forkfd {

CgroupEntry::CgroupEntry(int procs, std::string name) : procs_(procs), name_(std::move(name)) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) throw_errno(errno, "fork: make pipe");
    reader_ = UniqueFd(ends[0]);
    writer_ = UniqueFd(ends[1]);
}

void CgroupEntry::enter() noexcept {
    // "0" means the writing process, cgroups(7).
    const long rc = raw::call(SYS_write, procs_, raw::addr("0"), 1);
    const int err = rc < 0 ? static_cast<int>(-rc) : 0;
    raw::call(SYS_write, writer_.get(), raw::addr(&err), sizeof err);
    if (err != 0) ::_exit(127);
    reader_.reset();
    writer_.reset();
}

void CgroupEntry::await(pid_t child, int pidfd) {
    writer_.reset();
    pollfd ready[] = {{reader_.get(), POLLIN, 0}, {pidfd, POLLIN, 0}};
    while (::poll(ready, pidfd < 0 ? 1 : 2, -1) < 0 && errno == EINTR) {}
    // A report stays readable after the child's end.  The pidfd is polled too, since the pipe may
    // stay open: a child that another thread forks meanwhile has the writing end.
    int err = ECANCELED;
    const bool reported =
        (ready[0].revents & POLLIN) != 0 || wait_readable(reader_.get(), 0) == 1;
    if (reported && ::read(reader_.get(), &err, sizeof err) != sizeof err) err = ECANCELED;
    if (err == 0) return;
    reap_failed(child);
    throw_errno(err, "fork: enter cgroup " + name_);
}

int check_single_threaded() noexcept {
    return static_cast<int>(-raw::call(SYS_unshare, CLONE_THREAD));
}

UniqueFd pidfd_of_child(pid_t child) {
    UniqueFd pidfd = open_pidfd(child);
    if (pidfd || errno == ESRCH) return pidfd;
    const int err = errno;
    ::kill(child, SIGKILL);
    reap_failed(child);
    throw_errno(err, "fork: open pidfd of the child");
}

}  // namespace forkfd
