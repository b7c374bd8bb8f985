#include "core/epoll/epoll_view.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "core/base/kernel_flags.h"
#include "core/base/raw_syscall.h"
#include "core/base/unique_fd.h"
#include "core/descriptors/descriptor.h"

namespace forkfd {

namespace {

struct EpollSlot {  // struct kcmp_epoll_slot
    std::uint32_t epfd, number, nth;
};

}  // namespace

std::vector<EpollWatch> epoll_entries(int epfd) {
    const std::string number = std::to_string(epfd), what = "entries of epoll " + number;
    if (::fcntl(epfd, F_GETFD) < 0) throw_errno(errno, what);
    errno = 0;
    if (!is_epoll_by_name(epfd))
        throw_errno(errno != 0 ? errno : EINVAL,
                    what + (errno != 0 ? ": /proc" : ": not an epoll"));

    const std::string path = "/proc/thread-self/fdinfo/" + number;
    const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file) throw_errno(errno, what + ": " + path);
    std::string text;
    char buffer[4096];
    ssize_t n;
    while ((n = ::read(file.get(), buffer, sizeof buffer)) > 0)
        text.append(buffer, static_cast<std::size_t>(n));
    if (n < 0) throw_errno(errno, what + ": " + path);
    return epoll_watches(std::move(text));
}

std::optional<bool> watches_file(int epfd, int number, unsigned nth, int fd) {
    if (::fcntl(fd, F_GETFD) < 0) throw_errno(errno, "descriptor " + std::to_string(fd));
    const long order = compare_watched(epfd, number, nth, fd);
    if (order < 0) return std::nullopt;
    return order == 0;
}

long compare_watched(int epfd, int number, unsigned nth, int fd) noexcept {
    const EpollSlot slot = {static_cast<std::uint32_t>(epfd),
                            static_cast<std::uint32_t>(number), nth};
    const pid_t self = own_tid();
    return raw::call(SYS_kcmp, self, self, kKcmpEpollTfd, fd, raw::addr(&slot));
}

std::optional<bool> is_parents(int fd) {
    const long order =
        raw::call(SYS_kcmp, ::getpid(), ::getppid(), kKcmpFile, fd, fd);
    if (order == -EBADF) return false;
    if (order < 0) return std::nullopt;
    return order == 0;
}

// A new file is in no set (ENOENT); on another kind of file the call is EINVAL.
int not_an_epoll(int number, int new_file) noexcept {
    epoll_event unused = {};
    if (::epoll_ctl(number, EPOLL_CTL_DEL, new_file, &unused) == 0) return 0;
    return errno == ENOENT ? 0 : errno;
}

bool is_epoll_by_name(int number) noexcept {
    constexpr char kFolder[] = "/proc/self/fd/", kTarget[] = "anon_inode:[eventpoll]";
    char link[sizeof kFolder + 12] = {}, target[sizeof kTarget];
    std::memcpy(link, kFolder, sizeof kFolder);
    char* end = link + sizeof link - 1;
    char* digits = end;
    for (int rest = number; rest != 0 || digits == end; rest /= 10)
        *--digits = static_cast<char>('0' + rest % 10);
    std::memmove(link + sizeof kFolder - 1, digits, static_cast<std::size_t>(end - digits) + 1);
    const ssize_t length = ::readlink(link, target, sizeof target);
    return length == sizeof kTarget - 1 && std::memcmp(target, kTarget, sizeof kTarget - 1) == 0;
}

}  // namespace forkfd
