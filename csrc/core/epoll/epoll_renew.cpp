// The new instance of an EpollSet under its old number.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "core/base/trace.h"
#include "core/epoll/epoll_set.h"
#include "core/epoll/epoll_view.h"

namespace forkfd {

namespace {

// Returns errno if a number cannot be registered again; 0: it is still the same file.
int lost(const EpollRegistration& r) noexcept {
    struct stat s;
    if (::fstat(r.number, &s) != 0) return errno;
    return s.st_dev == r.device && s.st_ino == r.inode ? 0 : ENOENT;
}

}  // namespace

// An entry whose number is closed cannot be removed, only left behind with its instance.
void EpollSet::repair() {
    suspect_ = false;
    bool drifted = false;
    try {
        for (const EpollWatch& watch : epoll_entries(fd_.get())) {
            const auto r = registrations_.find(watch.number);
            drifted |= r == registrations_.end() || r->second.data != watch.data;
        }
    } catch (const std::system_error&) {
        drifted = true;  // unknown without /proc
    }
    if (!drifted) return;
    make_anew();
    if (broken_ != 0) fail(broken_, {"make anew", nullptr}, -1);  // refill() has traced it
}

void EpollSet::make_anew() noexcept {
    belief_.begin();
    const std::uint64_t begun = trace::on(trace::kEpoll) ? trace::now_ns() : 0;
    broken_ = 0;
    renew();
    refill(begun);
    publish();
}

// The shortage may be over, and the number is still that of the instance before.
bool EpollSet::broken_by_shortage() const noexcept {
    return fd_ && (broken_ == ENOMEM || broken_ == ENFILE || broken_ == EMFILE);
}

// A waiting thread would stay with the old instance, so the repair is left to its next wait().
void EpollSet::suspect() {
    suspect_ = true;
    if (waiters_ == 0) repair();
}

// A new instance under the old number.
void EpollSet::renew() noexcept {
    const int number = fd_.get();
    if (number < 0 || broken_ != 0) return;
    const bool inheritable = ::fcntl(number, F_GETFD) == 0;
    int fresh = ::epoll_create1(EPOLL_CLOEXEC);
    if (fresh < 0 && errno == EMFILE && is_epoll_by_name(number)) {
        ::close(fd_.release());  // no other number is free
        fresh = ::epoll_create1(EPOLL_CLOEXEC);
        fd_ = UniqueFd(fresh < 0 ? -1 : number);
    }
    if (fresh < 0) {
        broken_ = errno;
    } else if (fresh != number) {
        broken_ = not_an_epoll(number, fresh);
        if (broken_ != 0) fd_.release();  // the number was closed, and may belong to another user
        else if (::dup3(fresh, number, O_CLOEXEC) < 0) broken_ = errno;
        ::close(fresh);
    }
    if (broken_ != 0) return;
    if (inheritable) ::fcntl(number, F_SETFD, 0);
    ++rebuilds_;
}

void EpollSet::refill(std::uint64_t begun) noexcept {
    if (fd_ && broken_ == 0)
        for (auto& [number, r] : registrations_) {
            r.err = lost(r);
            if (r.err == 0) r.err = control(EPOLL_CTL_ADD, r);
        }
    if (!trace::on(trace::kEpoll) || (!fd_ && broken_ == 0)) return;
    int entries = 0, left_out = 0;
    for (const auto& [number, r] : registrations_)
        ++(broken_ == 0 && r.err == 0 ? entries : left_out);
    trace::Line line("epoll", "rebuilt");
    line.field("epoll", number_).field("entries", entries).field("left_out", left_out);
    if (broken_ != 0) line.field("errno", broken_);
    line.duration(begun);
}

}  // namespace forkfd
