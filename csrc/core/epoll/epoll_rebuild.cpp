#include "core/epoll/epoll_rebuild.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/base/kernel_statx.h"
#include "core/base/raw_syscall.h"
#include "core/base/trace.h"
#include "core/descriptors/descriptor.h"
#include "core/epoll/epoll_view.h"

namespace forkfd {

namespace {

// The unparsed rest of a line.  After the first mismatch nothing matches any more.
struct Rest {
    const char* at;
    const char* end;
    bool good = true;

    void blanks() noexcept {
        while (at != end && *at == ' ') ++at;
    }
    void word(const char* expected) noexcept {
        blanks();
        const std::size_t size = std::strlen(expected);
        good = good && static_cast<std::size_t>(end - at) >= size &&
               std::memcmp(at, expected, size) == 0;
        if (good) at += size;
    }
    std::uint64_t number(unsigned base) noexcept {
        blanks();
        std::uint64_t value = 0;
        const char* const first = at;
        for (; at != end; ++at) {
            unsigned digit = base;
            if (*at >= '0' && *at <= '9') digit = static_cast<unsigned>(*at - '0');
            else if (*at >= 'a' && *at <= 'f') digit = static_cast<unsigned>(*at - 'a') + 10;
            if (digit >= base) break;
            value = value * base + digit;
        }
        good = good && at != first;
        return value;
    }
};

}  // namespace

// "tfd:        5 events:       19 data:                5  pos:0 ino:437dfe sdev:f", proc(5).
bool parse_watch(const char* line, std::size_t size, EpollWatch& watch) noexcept {
    Rest rest = {line, line + size};
    rest.word("tfd:");
    watch.number = static_cast<int>(rest.number(10));
    rest.word("events:");
    watch.events = static_cast<std::uint32_t>(rest.number(16));
    rest.word("data:");
    watch.data = rest.number(16);
    rest.word("pos:");
    if (rest.at != rest.end && *rest.at == '-') ++rest.at;
    rest.number(10);
    rest.word("ino:");
    watch.inode = rest.number(16);
    rest.word("sdev:");
    watch.device = device_of(static_cast<unsigned>(rest.number(16)));
    return rest.good;
}

FdInfo::FdInfo(int number) noexcept {
    constexpr char kFolder[] = "/proc/self/fdinfo/";
    char path[sizeof kFolder + 10], digits[10];
    std::memcpy(path, kFolder, sizeof kFolder);
    char* const digits_end = digits + sizeof digits;
    char* first = digits_end;
    for (int rest = number; rest > 0 || first == digits_end; rest /= 10)
        *--first = static_cast<char>('0' + rest % 10);
    const auto size = static_cast<std::size_t>(digits_end - first);
    std::memcpy(path + sizeof kFolder - 1, first, size);
    path[sizeof kFolder - 1 + size] = '\0';
    fd_ = raw::call(SYS_openat, AT_FDCWD, raw::addr(path), O_RDONLY | O_CLOEXEC);
}

FdInfo::~FdInfo() {
    if (fd_ >= 0) raw::call(SYS_close, fd_);
}

long FdInfo::read(char* part, std::size_t size) const noexcept {
    if (fd_ < 0) return fd_;
    long n;
    do n = raw::call(SYS_read, fd_, raw::addr(part), static_cast<long>(size));
    while (n == -EINTR);
    return n;
}

bool is_watched_file(int epfd, const EpollWatch& watch, int fd) noexcept {
    KernelStatx s;
    if (raw::call(SYS_statx, fd, raw::addr(""), AT_EMPTY_PATH | kStatxDontSync, kStatxBasic,
                  raw::addr(&s)) != 0)
        return false;
    const bool same = s.inode == watch.inode &&
                      makedev(s.dev_major, s.dev_minor) == watch.device;
    if (same && (s.mode & S_IFMT) != 0) return true;
    for (unsigned nth = 0;; ++nth) {
        const long order = compare_watched(epfd, watch.number, nth, fd);
        if (order == 0 || order == -ENOENT) return order == 0;
        if (order < 0) return same;
    }
}

void demand_epoll(int number) {
    const std::string what = "epoll " + std::to_string(number);
    if (::fcntl(number, F_GETFD) < 0) throw_errno(errno, what);
    const UniqueFd fresh(::epoll_create1(EPOLL_CLOEXEC));
    if (!fresh) throw_errno(errno, what + ": check that it is an epoll");
    if (const int err = not_an_epoll(number, fresh.get()); err != 0)
        throw_errno(err, what + ": not an epoll");
}

namespace {

void fail(EpollRebuild& r, int err) noexcept {
    if (r.err == 0) r.err = err;
}

void renew(EpollRebuild& r) noexcept {
    r = {r.number};
    const int flags = ::fcntl(r.number, F_GETFD);
    if (flags < 0) return;  // closed: nothing to replace
    int fresh = ::epoll_create1(EPOLL_CLOEXEC);
    if (fresh < 0) {
        fail(r, errno);
        errno = 0;
        if (!is_epoll_by_name(r.number) && errno == 0) return;
        ::close(r.number);  // no other number is free, so its entries are lost
        fresh = ::epoll_create1(EPOLL_CLOEXEC);
        if (fresh < 0) return;
    } else if (not_an_epoll(r.number, fresh) != 0) {
        ::close(fresh);
        return;  // the number is another file by now
    } else if ((r.inherited = ::fcntl(r.number, F_DUPFD_CLOEXEC, 0)) < 0) {
        fail(r, errno);
    }
    if (fresh != r.number) {
        if (const int err = replace(r.number, fresh, true); err != 0) {
            fail(r, err);
            ::close(r.number);
        }
        ::close(fresh);
    }
    if (flags == 0) ::fcntl(r.number, F_SETFD, 0);
    r.is_new = true;
}

void refill(EpollRebuild& r, const EpollRebuild* all, std::size_t count) noexcept {
    const std::uint64_t begun = trace::on(trace::kEpoll) ? trace::now_ns() : 0;
    int entries = 0, left_out = 0;
    // The number at which the file of `number` is: a replaced epoll has moved to another one.
    const auto place_of = [&](int number) noexcept {
        for (std::size_t i = 0; i < count; ++i) {
            if (all[i].is_new && all[i].number == number) return all[i].inherited;
            if (all[i].inherited == number) return -1;
        }
        return number;
    };
    const auto add = [&](const EpollWatch& watch) noexcept {
        if (!is_watched_file(r.inherited, watch, place_of(watch.number))) {
            ++left_out;
            return;
        }
        epoll_event event = {};
        event.events = watch.events;
        event.data.u64 = watch.data;
        if (::epoll_ctl(r.number, EPOLL_CTL_ADD, watch.number, &event) == 0) ++entries;
        else if (errno == EEXIST) ++left_out;  // an entry of an older file of that number
        else fail(r, errno);
    };
    if (r.inherited >= 0)
        if (const int err = each_watch(r.inherited, add); err != 0) fail(r, err);
    if (!trace::on(trace::kEpoll)) return;
    trace::Line line("epoll", "rebuilt");
    line.field("epoll", r.number).field("entries", entries).field("left_out", left_out);
    if (r.err != 0) line.field("errno", r.err);
    line.duration(begun);
}

}  // namespace

bool rebuild_epolls(EpollRebuild* all, std::size_t count) noexcept {
    bool good = true;
    for (std::size_t i = 0; i < count; ++i) renew(all[i]);
    for (std::size_t i = 0; i < count; ++i) {
        if (all[i].is_new) refill(all[i], all, count);
        good = good && all[i].err == 0;
    }
    for (std::size_t i = 0; i < count; ++i)
        if (all[i].inherited >= 0) ::close(all[i].inherited);
    return good;
}

}  // namespace forkfd
