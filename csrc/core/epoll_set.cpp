#include "core/epoll_set.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "core/atfork.h"
#include "core/descriptor.h"
#include "core/epoll_view.h"

namespace forkfd {

// All sets of the process, for the fork; the list changes while none can happen.
struct LiveSets {
    EpollSet* first = nullptr;
    int depth = 0;  // a handler may fork within a fork

    LiveSets() {
        add_native({[](void* sets) noexcept { static_cast<LiveSets*>(sets)->before(); },
                    [](void* sets) noexcept { static_cast<LiveSets*>(sets)->in_parent(); },
                    [](void* sets) noexcept { static_cast<LiveSets*>(sets)->in_child(); },
                    this});
    }

    // No other thread is inside a change while the process forks; none needs the GIL, or the
    // list, to get out of one.  If it is our own, a signal handler forks in the middle of it.
    void before() noexcept {
        if (depth++ != 0) return;
        for (EpollSet* s = first; s != nullptr; s = s->next_)
            if (!(s->torn_ = s->lock_.mine())) s->lock_.lock();
    }

    void in_parent() noexcept {
        if (--depth != 0) return;
        for (EpollSet* s = first; s != nullptr; s = s->next_)
            if (!std::exchange(s->torn_, false)) s->lock_.unlock();
    }

    // Nothing here allocates or waits.  All instances are new before any is filled: one may
    // watch another.
    void in_child() noexcept {
        for (EpollSet* s = first; s != nullptr; s = s->next_) s->renew();
        for (EpollSet* s = first; s != nullptr; s = s->next_) {
            if (s->torn_) s->broken_ = EDEADLK;
            s->refill();
            s->waiters_ = 0;  // they are not in this process
        }
        in_parent();
    }

    void insert(EpollSet* s) {
        const NoForkNow still;
        s->next_ = first;
        if (first != nullptr) first->previous_ = s;
        first = s;
    }

    void erase(EpollSet* s) {
        const NoForkNow still;
        (s->previous_ != nullptr ? s->previous_->next_ : first) = s->next_;
        if (s->next_ != nullptr) s->next_->previous_ = s->previous_;
    }
};

namespace {

// Never destroyed: threads may still fork while the process exits.
LiveSets& live_sets() {
    static LiveSets* const sets = new LiveSets;
    return *sets;
}

// Why a number cannot be registered again; 0: it is still the file.
int lost(const EpollRegistration& r) noexcept {
    struct stat s;
    if (::fstat(r.number, &s) != 0) return errno;
    return s.st_dev == r.device && s.st_ino == r.inode ? 0 : ENOENT;
}

std::string name(const EpollRegistration& r) {
    return "inode " + std::to_string(r.inode) + " of device " + std::to_string(r.device);
}

}  // namespace

void EpollSet::watch_forks() { live_sets(); }

EpollSet::EpollSet() : fd_(::epoll_create1(EPOLL_CLOEXEC)), number_(fd_.get()) {
    if (!fd_) throw_errno(errno, "make an epoll");
    live_sets().insert(this);
}

EpollSet::~EpollSet() { live_sets().erase(this); }

void EpollSet::add(int number, std::uint32_t events) {
    const std::lock_guard<SetLock> lock(lock_);
    demand_open("register", number);
    struct stat s;
    if (::fstat(number, &s) != 0) fail(errno, "register", number);
    if (++count_ == 0) ++count_;
    const std::uint64_t data = std::uint64_t{count_} << 32 | static_cast<std::uint32_t>(number);
    const EpollRegistration made = {number, events, data, s.st_dev, s.st_ino};
    const auto [place, is_new] = registrations_.try_emplace(number, made);
    if (const int err = control(EPOLL_CTL_ADD, made); err != 0) {
        if (is_new) registrations_.erase(place);
        fail(err, "register", number);
    }
    if (is_new) return;
    // The number is another file than the one that was registered: that has lost its name.
    place->second = made;
    suspect();
}

void EpollSet::modify(int number, std::uint32_t events) {
    const std::lock_guard<SetLock> lock(lock_);
    demand_open("modify", number);
    const auto found = registrations_.find(number);
    if (found == registrations_.end()) fail(ENOENT, "modify", number);
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
    if (err != 0) fail(err, "modify", number);
    wanted.err = 0;
    r = wanted;
}

void EpollSet::remove(int number) {
    const std::lock_guard<SetLock> lock(lock_);
    demand_open("unregister", number);
    const auto found = registrations_.find(number);
    if (found == registrations_.end()) fail(ENOENT, "unregister", number);
    const int err = control(EPOLL_CTL_DEL, found->second);
    if (err == 0) {
        registrations_.erase(found);
        return;
    }
    try {
        fail(err, "unregister", number);
    } catch (const std::system_error&) {
        registrations_.erase(found);
        // The kernel drops a file when its last descriptor is closed, anybody's.
        suspect();
        throw;
    }
}

int EpollSet::wait(epoll_event* ready, int size, int timeout_ms) {
    int epfd;
    {
        const std::lock_guard<SetLock> lock(lock_);
        demand_open("wait", -1);
        if (suspect_) repair();
        epfd = fd_.get();
        ++waiters_;
    }
    const int found = ::epoll_wait(epfd, ready, size, timeout_ms);
    const int err = errno;

    const std::lock_guard<SetLock> lock(lock_);
    --waiters_;
    if (found < 0) return -err;
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
    const std::lock_guard<SetLock> lock(lock_);
    fd_.reset();
    registrations_.clear();
}

// What the kernel says is half of the story; the other half is what the number is now.
void EpollSet::fail(int err, const char* verb, int number) const {
    std::string what = "epoll " + std::to_string(number_) + ": " + verb;
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

void EpollSet::demand_open(const char* verb, int number) const {
    if (broken_ != 0) fail(broken_, verb, number);
    if (!fd_) fail(EBADF, verb, number);
}

int EpollSet::control(int operation, const EpollRegistration& r) const noexcept {
    epoll_event event = {};
    event.events = r.events;
    event.data.u64 = r.data;
    return ::epoll_ctl(fd_.get(), operation, r.number, &event) == 0 ? 0 : errno;
}

// An entry without a number cannot be removed, only left behind with its instance.
void EpollSet::repair() {
    suspect_ = false;
    bool drifted = false;
    try {
        for (const EpollWatch& watch : epoll_entries(fd_.get())) {
            const auto r = registrations_.find(watch.number);
            drifted |= r == registrations_.end() || r->second.data != watch.data;
        }
    } catch (const std::system_error&) {
        drifted = true;  // without /proc nobody knows
    }
    if (!drifted) return;
    renew();
    refill();
    demand_open("make anew", -1);
}

// A thread that waits would stay with the old instance, so it is left to do this itself.
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
        if (broken_ != 0) fd_.release();  // it was closed, and may be somebody else's
        else if (::dup3(fresh, number, O_CLOEXEC) < 0) broken_ = errno;
        ::close(fresh);
    }
    if (broken_ != 0) return;
    if (inheritable) ::fcntl(number, F_SETFD, 0);
    ++rebuilds_;
}

void EpollSet::refill() noexcept {
    if (!fd_ || broken_ != 0) return;
    for (auto& [number, r] : registrations_) {
        r.err = lost(r);
        if (r.err == 0) r.err = control(EPOLL_CTL_ADD, r);
    }
}

}  // namespace forkfd
