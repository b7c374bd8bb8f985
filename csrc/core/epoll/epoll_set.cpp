#include "core/epoll/epoll_set.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "core/base/trace.h"
#include "core/descriptors/descriptor.h"
#include "core/epoll/epoll_view.h"
#include "core/epoll/live_sets.h"

namespace forkfd {

namespace {

using Operation = EpollSet::Operation;
constexpr Operation kAdd = {"register", "add"}, kModify = {"modify", "modify"},
                    kRemove = {"unregister", "remove"}, kWait = {"wait", "wait"};

void trace_operation(const Operation& what, int epoll, int number, std::uint32_t events,
                     int err) noexcept {
    if (!trace::on(trace::kEpoll) || what.stage == nullptr) return;
    trace::Line line("epoll", what.stage);
    line.field("epoll", epoll);
    if (number >= 0) line.field("fd", number);
    if (events != 0) line.field("events", events);
    if (err != 0) line.field("errno", err);
}

std::string name(const EpollRegistration& r) {
    return "inode " + std::to_string(r.inode) + " of device " + std::to_string(r.device);
}

}  // namespace

void EpollSet::watch_forks() { live_sets(); }

EpollSet::EpollSet() : fd_(::epoll_create1(EPOLL_CLOEXEC)), number_(fd_.get()),
                       belief_(EpollBelief::take()) {
    if (!fd_) {
        belief_.give_back();
        throw_errno(errno, "make an epoll");
    }
    publish();
    live_sets().insert(this);
}

EpollSet::~EpollSet() {
    live_sets().erase(this);
    belief_.give_back();
}

EpollSet::Change::Change(EpollSet& set) : lock_(set.lock_), set_(set) { set.belief_.begin(); }
EpollSet::Change::~Change() { set_.publish(); }

void EpollSet::publish() noexcept {
    belief_.end(broken_ == 0 ? fd_.get() : -1, registrations_.size(), mark_);
}

void EpollSet::add(int number, std::uint32_t events) {
    const Change change(*this);
    demand_instance(kAdd, number);
    struct stat s;
    if (::fstat(number, &s) != 0) fail(errno, kAdd, number);
    if (++count_ == 0) ++count_;
    const std::uint64_t data = std::uint64_t{count_} << 32 | static_cast<std::uint32_t>(number);
    const EpollRegistration made = {number, events, data, s.st_dev, s.st_ino};
    const auto [place, is_new] = registrations_.try_emplace(number, made);
    if (const int err = control(EPOLL_CTL_ADD, made); err != 0) {
        if (is_new) registrations_.erase(place);
        fail(err, kAdd, number);
    }
    trace_operation(kAdd, number_, number, events, 0);
    mark_ ^= data;
    if (is_new) return;
    mark_ ^= place->second.data;
    // The number is another file than the one registered before, which has no number any more.
    place->second = made;
    suspect();
}

void EpollSet::modify(int number, std::uint32_t events) {
    const Change change(*this);
    demand_instance(kModify, number);
    const auto found = registrations_.find(number);
    if (found == registrations_.end()) fail(ENOENT, kModify, number);
    EpollRegistration& r = found->second;
    EpollRegistration wanted = r;
    wanted.events = events;
    int err;
    if (((r.events | events) & EPOLLEXCLUSIVE) == 0) {
        err = control(EPOLL_CTL_MOD, wanted);
    } else {
        // EPOLLEXCLUSIVE is for EPOLL_CTL_ADD alone, epoll_ctl(2).
        err = control(EPOLL_CTL_DEL, r);
        if (err == 0 && (err = control(EPOLL_CTL_ADD, wanted)) != 0)
            r.err = control(EPOLL_CTL_ADD, r);
    }
    if (err != 0) fail(err, kModify, number);
    trace_operation(kModify, number_, number, events, 0);
    wanted.err = 0;
    r = wanted;
}

void EpollSet::remove(int number) {
    const Change change(*this);
    demand_instance(kRemove, number);
    const auto found = registrations_.find(number);
    if (found == registrations_.end()) fail(ENOENT, kRemove, number);
    mark_ ^= found->second.data;
    const int err = control(EPOLL_CTL_DEL, found->second);
    if (err == 0) {
        trace_operation(kRemove, number_, number, 0, 0);
        registrations_.erase(found);
        return;
    }
    try {
        fail(err, kRemove, number);
    } catch (const std::system_error&) {
        registrations_.erase(found);
        // The kernel drops an entry when the last descriptor of its file is closed, in any
        // process.
        suspect();
        throw;
    }
}

int EpollSet::wait(epoll_event* ready, int size, int timeout_ms) {
    int epfd;
    {
        const std::lock_guard<SetLock> lock(lock_);
        demand_instance(kWait, -1);
        if (suspect_) repair();
        epfd = fd_.get();
        ++waiters_;
    }
    const int found = ::epoll_wait(epfd, ready, size, timeout_ms);
    const int err = errno;

    const std::lock_guard<SetLock> lock(lock_);
    --waiters_;
    if (found < 0) {
        if (err != EINTR) trace_operation(kWait, number_, -1, 0, err);
        return -err;
    }
    int known = 0;
    for (int i = 0; i < found; ++i) {
        const std::uint64_t data = ready[i].data.u64;
        const auto r = registrations_.find(static_cast<int>(data));
        if (r == registrations_.end() || r->second.data != data) continue;
        ready[known].events = ready[i].events;
        ready[known++].data.u64 = static_cast<std::uint32_t>(data);
    }
    if (known != found && fd_) repair();
    return known == 0 && found != 0 ? -EINTR : known;
}

int EpollSet::fd() const {
    const std::lock_guard<SetLock> lock(lock_);
    return fd_.get();
}

std::vector<EpollRegistration> EpollSet::registrations() const {
    const std::lock_guard<SetLock> lock(lock_);
    std::vector<EpollRegistration> found;
    found.reserve(registrations_.size());
    for (const auto& [number, r] : registrations_) found.push_back(r);
    return found;
}

std::uint64_t EpollSet::rebuilds() const {
    const std::lock_guard<SetLock> lock(lock_);
    return rebuilds_;
}

void EpollSet::close() {
    const Change change(*this);
    fd_.reset();
    registrations_.clear();
    mark_ = 0;
}

// The kernel's error is half of the explanation; the other half is the file at the number now.
void EpollSet::fail(int err, const Operation& operation, int number) const {
    trace_operation(operation, number_, number, 0, err);
    std::string what = "epoll " + std::to_string(number_) + ": " + operation.verb;
    if (number >= 0) what += " descriptor " + std::to_string(number);
    if (broken_ != 0) what += ", whose instance could not be made anew after a fork";
    const auto found = registrations_.find(number);
    if (found != registrations_.end()) {
        const EpollRegistration& r = found->second;
        struct stat s;
        what += ", registered as " + name(r);
        if (::fstat(number, &s) != 0) what += " and closed since";
        else if (s.st_dev != r.device || s.st_ino != r.inode)
            what += " and now inode " + std::to_string(s.st_ino) + " of device " +
                    std::to_string(s.st_dev);
        if (r.err != 0)
            what += ", which this process could not register (" +
                    std::generic_category().message(r.err) + ")";
    }
    throw_errno(err, what);
}

void EpollSet::demand_instance(const Operation& operation, int number) {
    if (broken_by_shortage()) make_anew();
    if (broken_ != 0) fail(broken_, operation, number);
    if (!fd_) fail(EBADF, operation, number);
}

int EpollSet::control(int operation, const EpollRegistration& r) const noexcept {
    epoll_event event = {};
    event.events = r.events;
    event.data.u64 = r.data;
    return ::epoll_ctl(fd_.get(), operation, r.number, &event) == 0 ? 0 : errno;
}

}  // namespace forkfd
