#include "core/atfork/fork_lock.h"

#include <linux/futex.h>

#include <cerrno>
#include <climits>
#include <ctime>
#include <new>
#include <system_error>

#include "core/atfork/atfork.h"
#include "core/base/fork_page.h"
#include "core/base/raw_syscall.h"

namespace forkfd {

// There is one lock, so each thread has one count.  The child's handler does not touch it, since
// the first access could allocate; an older generation marks a count from before the fork.
ForkLock::Reads& ForkLock::reads() noexcept {
    thread_local Reads mine;
    const unsigned now = generation_.load();
    if (mine.generation != now) mine = {now, 0};
    return mine;
}

// Returns false when the time is up.
bool ForkLock::sleep(std::uint32_t seen, const Clock::time_point* deadline) noexcept {
    timespec left = {};
    if (deadline != nullptr) {
        const auto ns =
            std::chrono::duration_cast<std::chrono::nanoseconds>(*deadline - Clock::now()).count();
        if (ns <= 0) return false;
        left = {static_cast<time_t>(ns / 1000000000), static_cast<long>(ns % 1000000000)};
    }
    return raw::call(SYS_futex, raw::addr(&word_), FUTEX_WAIT_PRIVATE, seen,
                     deadline == nullptr ? 0 : raw::addr(&left)) != -ETIMEDOUT;
}

FORKFD_IN_CHILD void ForkLock::wake() noexcept {
    raw::call(SYS_futex, raw::addr(&word_), FUTEX_WAKE_PRIVATE, INT_MAX);
}

bool ForkLock::enter_shared(const Clock::time_point* deadline) noexcept {
    if (mine()) {
        ++depth_;
        return true;
    }
    Reads& r = reads();
    if (r.depth > 0) {  // already shared: a waiting writer waits for this thread
        ++r.depth;
        return true;
    }
    for (;;) {
        std::uint32_t seen = word_.load();
        // A waiting writer goes first: overlapping readers would starve it.
        if ((seen & (kWriter | kWaiting)) == 0) {
            if (!word_.compare_exchange_weak(seen, seen + 1)) continue;
            r.depth = 1;
            return true;
        }
        if (!sleep(seen, deadline)) return false;
    }
}

void ForkLock::lock_shared() noexcept { enter_shared(nullptr); }

bool ForkLock::try_lock_shared_for(Milliseconds time) noexcept {
    const auto deadline = Clock::now() + time;
    return enter_shared(&deadline);
}

void ForkLock::unlock_shared() noexcept {
    if (mine()) {
        unlock();
        return;
    }
    Reads& r = reads();
    if (r.depth == 0 || --r.depth > 0) return;  // 0: from before the fork
    if (((word_.fetch_sub(1) - 1) & kReaders) == 0) wake();
}

bool ForkLock::try_lock_for(Milliseconds time) {
    if (mine()) {
        ++depth_;
        return true;
    }
    if (reads().depth > 0)
        throw std::system_error(EDEADLK, std::generic_category(),
                                "fork lock: lock exclusively: this thread holds it shared");
    const auto deadline = Clock::now() + time;
    for (;;) {
        std::uint32_t seen = word_.load();
        if ((seen & ~kWaiting) == 0) {
            if (!word_.compare_exchange_weak(seen, kWriter)) continue;
            owner_ = std::this_thread::get_id();
            depth_ = 1;
            return true;
        }
        if ((seen & kWaiting) == 0) {
            word_.compare_exchange_weak(seen, seen | kWaiting);
            continue;
        }
        if (!sleep(seen, &deadline)) {
            word_ &= ~kWaiting;  // other waiting writers set it again
            wake();
            return false;
        }
    }
}

FORKFD_IN_CHILD void ForkLock::unlock() noexcept {
    if (--depth_ != 0) return;
    owner_ = std::thread::id();
    word_ &= ~kWriter;
    wake();
}

FORKFD_IN_CHILD void ForkLock::reset_in_child() noexcept {
    ++generation_;
    if (mine()) {
        word_ = kWriter;
        return;
    }
    owner_ = std::thread::id();
    depth_ = 0;
    word_ = 0;
}

namespace {

FORKFD_IN_CHILD void lock_in_child(void* lock) noexcept {
    static_cast<ForkLock*>(lock)->reset_in_child();
}

}  // namespace

FORKFD_IN_CHILD ForkLock& fork_lock() {
    alignas(ForkLock) FORKFD_FORK_PAGE static unsigned char place[sizeof(ForkLock)];
    static ForkLock* const lock = [] {
        auto* const made = new (place) ForkLock;
        add_native({nullptr, nullptr, lock_in_child, made});
        return made;
    }();
    return *lock;
}

}  // namespace forkfd
