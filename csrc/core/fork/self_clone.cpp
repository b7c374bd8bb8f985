#include "core/fork/self_clone.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>

#include "core/base/kernel_flags.h"
#include "core/base/pidfd.h"
#include "core/base/probe.h"
#include "core/base/raw_syscall.h"
#include "core/base/signal_mask.h"
#include "core/descriptors/descriptor.h"
#include "core/fork/forked.h"
#include "core/spawn/clone.h"
#include "core/spawn/facilities.h"
#include "core/spawn/spawner_thread.h"

namespace forkfd {

namespace {

// The word that the kernel clears at the thread's end, set_tid_address(2).
pid_t* cleared_word() noexcept {
    pid_t* address = nullptr;
    if (raw::call(SYS_prctl, PR_GET_TID_ADDRESS, raw::addr(&address)) != 0) return nullptr;
    return address;
}

// The offset of the thread id behind pthread_self(), as glibc publishes it for debuggers
// (libthread_db); -1 in any other libc.  Read when the library is loaded: dlsym() takes the
// loader's lock, which a child of a process with threads may inherit locked.
long published_offset() noexcept {
    struct Field {
        std::uint32_t bits, count, offset;
    };
    const auto find = [](const char* name) { return ::dlsym(RTLD_DEFAULT, name); };
    const auto* const tid = static_cast<const Field*>(find("_thread_db_pthread_tid"));
    const auto* const size = static_cast<const std::uint32_t*>(find("_thread_db_sizeof_pthread"));
    if (tid == nullptr || size == nullptr) return -1;
    const bool fits = tid->bits == 8 * sizeof(pid_t) && tid->count == 1 &&
                      tid->offset % sizeof(pid_t) == 0 && *size >= sizeof(pid_t) &&
                      tid->offset <= *size - sizeof(pid_t);
    return fits ? static_cast<long>(tid->offset) : -1;
}
const long tid_offset = published_offset();

// Where libc keeps the caller's thread id, so that a clone can put the child's there; nullptr
// if it is not found.  It is the word that the kernel clears, but since glibc 2.43, where that
// word is the state of a join.  A place counts only if it holds the right number.
pid_t* tid_of_libc() noexcept {
    const pid_t self = own_tid();
    pid_t* const cleared = cleared_word();
    if (cleared != nullptr && *cleared == self) return cleared;
    if (tid_offset < 0) return nullptr;
    auto* const field = reinterpret_cast<pid_t*>(
        reinterpret_cast<char*>(::pthread_self()) + tid_offset);
    return *field == self ? field : nullptr;
}

// Emptied in the child: held locks are the parent's (get_robust_list(2)).
struct RobustList {
    robust_list_head* head = nullptr;
    std::size_t size = 0;

    RobustList() {
        const long rc = raw::call(SYS_get_robust_list, 0, raw::addr(&head), raw::addr(&size));
        if (rc < 0) throw_errno(static_cast<int>(-rc), "clone: get_robust_list");
    }
    void register_in_child() const noexcept {
        if (head == nullptr) return;
        head->list.next = &head->list;
        head->list_op_pending = nullptr;
        raw::call(SYS_set_robust_list, raw::addr(head), static_cast<long>(size));
    }
};

// Returns twice, like fork: on the same stack, of which the child has a copy.
__attribute__((noinline)) long enter_kernel(const SelfClone& how, std::uint64_t flags,
                                            bool use_clone3, pid_t* tid, int* pidfd) noexcept {
    if (use_clone3) {
        KernelCloneArgs args = {};
        args.flags = flags;
        args.pidfd = static_cast<std::uint64_t>(raw::addr(pidfd));
        args.child_tid = static_cast<std::uint64_t>(raw::addr(tid));
        args.parent_tid = static_cast<std::uint64_t>(raw::addr(how.pid_slot));
        args.exit_signal = static_cast<std::uint64_t>(how.exit_signal);
        args.cgroup = static_cast<std::uint64_t>(how.cgroup_fd);
        return raw::call(raw::nr_clone3, raw::addr(&args),
                         (flags & kCloneIntoCgroup) != 0 ? kCloneArgsCgroup : kCloneArgsFirst);
    }
    void* const parent_tid = how.pid_slot != nullptr ? static_cast<void*>(how.pid_slot) : pidfd;
    const long word = static_cast<long>(flags) | how.exit_signal;
#if defined(__x86_64__)
    return raw::call(SYS_clone, word, 0, raw::addr(parent_tid), raw::addr(tid), 0);
#else
    return raw::call(SYS_clone, word, 0, raw::addr(parent_tid), 0, raw::addr(tid));
#endif
}

// For kernels that refuse CLONE_INTO_CGROUP: the child enters the cgroup and reports.
class CgroupByHand {
  public:
    explicit CgroupByHand(int cgroup_fd) {
        procs_ = UniqueFd(::openat(cgroup_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC));
        if (!procs_) throw_errno(errno, "clone: open cgroup.procs");
        int ends[2];
        if (::pipe2(ends, O_CLOEXEC) != 0) throw_errno(errno, "clone: pipe");
        reader_ = UniqueFd(ends[0]);
        writer_ = UniqueFd(ends[1]);
    }
    void enter_in_child() noexcept {
        const int err = ::write(procs_.get(), "0", 1) == 1 ? 0 : errno;
        (void)!::write(writer_.get(), &err, sizeof err);
        if (err != 0) ::_exit(127);
    }
    int result_in_parent() noexcept {  // errno
        writer_.reset();
        int err = 0;
        ssize_t n;
        do n = ::read(reader_.get(), &err, sizeof err);
        while (n < 0 && errno == EINTR);
        return n == sizeof err ? err : ECANCELED;
    }

  private:
    UniqueFd procs_, reader_, writer_;
};

std::string described(const SelfClone& how) {
    char text[64];
    std::snprintf(text, sizeof text, "clone with flags %#llx",
                  static_cast<unsigned long long>(how.flags));
    return text;
}

std::string named(const std::vector<Task>& tasks) {
    std::string text = "the process has other threads:";
    for (const Task& task : tasks) text += " " + task.name + " (" + std::to_string(task.tid) + ")";
    return text;
}

// Our thread id in /proc, which may be mounted for an outer pid namespace.
pid_t listed_tid() {
    char link[64] = {};
    if (::readlink("/proc/thread-self", link, sizeof link - 1) < 0)
        throw_errno(errno, "clone: read /proc/thread-self");
    const char* const tid = std::strrchr(link, '/');
    return std::atoi(tid == nullptr ? link : tid + 1);
}

std::vector<Task> tasks_now() {
    const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir("/proc/self/task"), ::closedir);
    if (folder == nullptr) throw_errno(errno, "clone: count threads in /proc/self/task");
    const pid_t self = listed_tid();
    std::vector<Task> found;
    while (const dirent* entry = ::readdir(folder.get())) {
        const pid_t tid = std::atoi(entry->d_name);
        if (tid == 0 || tid == self) continue;
        char name[32] = {};
        const std::string path = "/proc/self/task/" + std::to_string(tid) + "/comm";
        const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
        ssize_t n = file ? ::read(file.get(), name, sizeof name - 1) : -1;
        if (n < 0) continue;  // it has ended
        if (n > 0 && name[n - 1] == '\n') --n;
        found.push_back({tid, std::string(name, static_cast<std::size_t>(n))});
    }
    return found;
}

}  // namespace

const std::uint64_t clone_flags_for_processes =
    CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET |
    kCloneNewCgroup | kCloneNewTime | kCloneClearSighand | CLONE_PARENT | CLONE_PTRACE |
    CLONE_UNTRACED | CLONE_FS | CLONE_IO | CLONE_SYSVSEM;

OtherThreads::OtherThreads(std::vector<Task> found)
    : std::runtime_error(named(found)), tasks(std::move(found)) {}

std::vector<Task> other_tasks() {
    if (check_single_threaded() == 0) return {};
    // A joined thread disappears from /proc a moment after pthread_join() returns.
    const timespec pause = {0, 500 * 1000};
    std::vector<Task> found = tasks_now();
    for (int tries = 0; tries < 40 && !found.empty(); ++tries) {
        ::nanosleep(&pause, nullptr);
        found = tasks_now();
    }
    return found;
}

std::string why_not_clone(std::uint64_t flags) {
    if ((flags & CLONE_PARENT) != 0 && ::getpid() == 1)
        return "pid 1 of a pid namespace may have no siblings";
    if (cleared_word() == nullptr) return "the kernel does not tell where the thread id is kept";
    if (tid_of_libc() == nullptr) return "this libc keeps the thread id elsewhere (musl)";
    return "";
}

SelfCloned self_clone(const SelfClone& how) {
    if (const std::string why = why_not_clone(how.flags); !why.empty())
        throw_errno(ENOTSUP, described(how) + ": " + why);
    const RobustList robust;
    pid_t* const tid = tid_of_libc();
    pid_t* const cleared = cleared_word();
    const Needs needs = {(how.flags & kClone3Only) != 0, false, how.flags != 0};
    Facilities used = {};
    used.clone3 = !refusals().clone3;
    used.into_cgroup = how.cgroup_fd >= 0 && used.clone3 && !refusals().into_cgroup;
    used.pidfd = !refusals().clone_pidfd;
    std::unique_ptr<CgroupByHand> by_hand;
    if (std::vector<Task> others = other_tasks(); !others.empty())
        throw OtherThreads(std::move(others));
    for (;;) {
        if (how.cgroup_fd >= 0 && !used.into_cgroup && by_hand == nullptr)
            by_hand = std::make_unique<CgroupByHand>(how.cgroup_fd);
        std::uint64_t flags = how.flags | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
        if (how.pid_slot != nullptr) flags |= CLONE_PARENT_SETTID;
        if (used.into_cgroup) flags |= kCloneIntoCgroup;
        // clone() has one place for the pidfd and the slot.
        if (used.pidfd && (used.clone3 || how.pid_slot == nullptr)) flags |= kClonePidfd;
        if (!used.clone3 && needs.clone3)
            throw_errno(refusals().clone3.err(), described(how) + " needs clone3");
        int pidfd = -1;
        long pid;
        {
            const AllSignalsBlocked blocked;
            pid = enter_kernel(how, flags, used.clone3, tid, &pidfd);
            if (pid == 0) {
                // The clone has one address for both: the word cleared at the end is again
                // the one that libc had chosen.
                if (cleared != tid) raw::call(SYS_set_tid_address, raw::addr(cleared));
                robust.register_in_child();
                ChildStack::forget_after_fork();
                forget_spawner_thread();
                if (by_hand != nullptr) by_hand->enter_in_child();
            }
        }
        if (pid == 0) return {0, {}};
        if (pid < 0) {
            const int err = static_cast<int>(-pid);
            if (give_way(used, needs, err, refusals()) != nullptr) continue;
            throw_errno(err, described(how));
        }
        SelfCloned child = {static_cast<pid_t>(pid), UniqueFd(pidfd)};
        if (!child.pidfd) child.pidfd = open_pidfd(child.pid);
        if (by_hand != nullptr) {
            if (const int err = by_hand->result_in_parent(); err != 0) {
                if ((how.flags & CLONE_PARENT) == 0) reap_failed(child.pid);
                throw_errno(err, described(how) + ": enter cgroup");
            }
        }
        return child;
    }
}

}  // namespace forkfd
