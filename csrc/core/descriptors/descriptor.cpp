#include "core/descriptors/descriptor.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <system_error>

#include "core/base/kernel_flags.h"
#include "core/base/probe.h"
#include "core/base/raw_syscall.h"

namespace forkfd {

namespace {

std::string name(int fd) { return "descriptor " + std::to_string(fd); }

int get_flags(int fd, const char* verb) {
    const int flags = ::fcntl(fd, F_GETFD);
    if (flags < 0) throw_errno(errno, name(fd) + ": " + verb);
    return flags;
}

}  // namespace

void throw_errno(int err, const std::string& what) {
    throw std::system_error(err, std::generic_category(), what);
}

bool cloexec(int fd) { return (get_flags(fd, "read close-on-exec") & FD_CLOEXEC) != 0; }

void set_cloexec(int fd, bool on) {
    // FD_CLOEXEC is the only flag there is (fcntl(2)), so this one call is atomic; unlike
    // ioctl(FIOCLEX) it takes O_PATH descriptors.
    if (::fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0) < 0)
        throw_errno(errno, name(fd) + (on ? ": set close-on-exec" : ": clear close-on-exec"));
}

void close_range(unsigned first, unsigned last, bool cloexec, bool unshare) {
    const unsigned flags = (unshare ? kCloseRangeUnshare : 0) | (cloexec ? kCloseRangeCloexec : 0);
    const long rc = raw::call(raw::nr_close_range, first, last, flags);
    if (rc == 0) return;
    const std::string what =
        "close range " + std::to_string(first) + " to " + std::to_string(last);
    const int err = static_cast<int>(-rc);
    if (first > last || !means_refused(err)) throw_errno(err, what);
    if (unshare && ::unshare(CLONE_FILES) != 0) throw_errno(errno, what + ": unshare");

    UniqueFd folder(::open("/proc/thread-self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!folder) throw_errno(errno, what + ": /proc/thread-self/fd");
    for (const int fd : list_descriptors(std::move(folder), true)) {
        const auto number = static_cast<unsigned>(fd);
        if (number < first || number > last) continue;
        // Another thread may have closed it; no caller handles errors of the file itself.
        if (cloexec) ::fcntl(fd, F_SETFD, FD_CLOEXEC);
        else ::close(fd);
    }
}

// Raw: gettid() is missing from glibc before 2.30.
pid_t own_tid() noexcept { return static_cast<pid_t>(raw::call(SYS_gettid)); }

int compare_open_files(pid_t pid, int a, int b) noexcept {
    return static_cast<int>(raw::call(SYS_kcmp, pid, pid, kKcmpFile, a, b));
}

bool same_open_file(int a, int b) {
    get_flags(a, "compare");  // F_DUPFD_QUERY returns "no" for a number that is not open
    get_flags(b, "compare");
    if (a == b) return true;
    if (const int same = ::fcntl(a, kDupfdQuery, b); same >= 0) return same == 1;
    const int order = compare_open_files(own_tid(), a, b);
    if (order >= 0) return order == 0;

    struct stat x, y;
    if (::fstat(a, &x) == 0 && ::fstat(b, &y) == 0) {
        const int fixed = O_ACCMODE | O_PATH;  // for the life of an open file
        const int flags = ::fcntl(a, F_GETFL) & fixed;
        if (x.st_dev != y.st_dev || x.st_ino != y.st_ino) return false;
        if (flags != (::fcntl(b, F_GETFL) & fixed)) return false;
        // A socket cannot be opened a second time, only its name (O_PATH) can.
        if (S_ISSOCK(x.st_mode) && (flags & O_PATH) == 0) return true;
    }
    throw_errno(-order, name(a) + " and " + std::to_string(b) + ": compare: kcmp");
}

std::vector<int> list_descriptors(UniqueFd folder, bool own) {
    const std::unique_ptr<DIR, int (*)(DIR*)> dir(::fdopendir(folder.get()), &::closedir);
    if (!dir) throw_errno(errno, "list descriptors");
    const int skipped = own ? folder.release() : (folder.release(), -1);
    std::vector<int> found;
    while (const dirent* entry = (errno = 0, ::readdir(dir.get()))) {
        if (entry->d_name[0] == '.') continue;
        const int fd = std::atoi(entry->d_name);
        if (fd != skipped) found.push_back(fd);
    }
    if (errno != 0) throw_errno(errno, "list descriptors");
    std::sort(found.begin(), found.end());
    return found;
}

UniqueFd duplicate_beside(int fd, const std::vector<int>& beside) {
    constexpr int kHigh = 64;
    UniqueFd copy;
    std::vector<UniqueFd> unfit;  // closed at the end: the next duplicate gets another number
    for (int from = kHigh;;) {
        copy = UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, from));
        // EINVAL and EMFILE: no number is free up there (RLIMIT_NOFILE).
        if (!copy && from == kHigh && (errno == EINVAL || errno == EMFILE)) from = 0;
        else if (!copy) throw_errno(errno, name(fd) + ": duplicate");
        else if (std::find(beside.begin(), beside.end(), copy.get()) == beside.end()) return copy;
        else unfit.push_back(std::move(copy));
    }
}

void demand_below_limit(int number) {
    rlimit limit;
    if (number < 0 || (::getrlimit(RLIMIT_NOFILE, &limit) == 0 &&
                       static_cast<rlim_t>(number) >= limit.rlim_cur))
        throw_errno(EBADF, name(number) + ": not below RLIMIT_NOFILE");
}

int replace(int number, int source, bool cloexec) noexcept {
    for (;;) {
        const long rc = raw::call(SYS_dup3, source, number, cloexec ? O_CLOEXEC : 0);
        // EBUSY: another thread is opening that number, dup(2).
        if (rc != -EINTR && rc != -EBUSY) return rc < 0 ? static_cast<int>(-rc) : 0;
    }
}

std::int64_t stream_kind(int fd) noexcept {
    struct stat found = {};
    if (::fstat(fd, &found) != 0) return -1;
    if (S_ISFIFO(found.st_mode) || S_ISSOCK(found.st_mode)) return 1;
    if (S_ISREG(found.st_mode)) return 0;
    if (!S_ISCHR(found.st_mode) || ::lseek(fd, 0, SEEK_CUR) > 0) return -2;
    return static_cast<std::int64_t>(found.st_rdev) + 2;
}

UniqueFd signal_fd(std::uint64_t mask) {
    // Raw: the kernel's set is these 64 bits; libc's type would have to be built from them.
    const long rc = raw::call(SYS_signalfd4, -1, raw::addr(&mask), sizeof mask,
                              O_CLOEXEC | O_NONBLOCK);
    if (rc < 0) throw_errno(static_cast<int>(-rc), "signalfd");
    return UniqueFd(static_cast<int>(rc));
}

void disconnect(int fd) {
    sockaddr none = {};
    none.sa_family = AF_UNSPEC;
    if (::connect(fd, &none, sizeof none) != 0) throw_errno(errno, "connect");
}

}  // namespace forkfd
