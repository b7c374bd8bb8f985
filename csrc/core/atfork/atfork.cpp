#include "core/atfork/atfork.h"

#include <linux/futex.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <new>
#include <system_error>
#include <thread>

#include "core/atfork/at_fork_list.h"
#include "core/base/fork_page.h"
#include "core/base/signal_mask.h"

namespace forkfd {

namespace {

// A lock that is still valid in a child: words only, no libc object that records the owner's
// thread id.  Recursive, since a handler, or a signal handler between two of them, may fork.
class RecursiveLock {
  public:
    void lock() noexcept {
        if (!mine()) {
            // 0 free, 1 locked, 2 locked and awaited: Drepper, "Futexes are tricky".
            int seen = 0;
            if (!word_.compare_exchange_strong(seen, 1, std::memory_order_acquire)) {
                if (seen != 2) seen = word_.exchange(2, std::memory_order_acquire);
                while (seen != 0) {
                    raw::call(SYS_futex, raw::addr(&word_), FUTEX_WAIT_PRIVATE, 2, 0);
                    seen = word_.exchange(2, std::memory_order_acquire);
                }
            }
            owner_.store(std::this_thread::get_id(), std::memory_order_relaxed);
        }
        ++depth_;
    }

    void unlock() noexcept {
        if (--depth_ != 0) return;
        owner_.store({}, std::memory_order_relaxed);
        if (word_.exchange(0, std::memory_order_release) == 2)
            raw::call(SYS_futex, raw::addr(&word_), FUTEX_WAKE_PRIVATE, 1);
    }

    bool mine() const noexcept {
        return owner_.load(std::memory_order_relaxed) == std::this_thread::get_id();
    }

  private:
    std::atomic<int> word_{0};
    std::atomic<std::thread::id> owner_{};
    int depth_ = 0;  // accessed by the owner alone
};
static_assert(sizeof(std::atomic<int>) == sizeof(int), "futex(2) takes a plain word");

using List = AtForkList<NativeHandlers>;

// A fork holds the lock from its first `before` to its last `in_parent`, as musl and older
// glibc hold theirs: no thread changes the list meanwhile, and the round needs no memory.
struct Native {
    RecursiveLock lock;
    List list;
    bool bound = false;
    // One for each fork that a handler makes within a fork; deeper ones run no handler.
    static constexpr int kNested = 4;
    List::Round rounds[kNested];
    int depth = 0;
};

FORKFD_IN_CHILD Native& native() {
    alignas(Native) FORKFD_FORK_PAGE static unsigned char place[sizeof(Native)];
    static Native* const made = new (place) Native;  // never destroyed: threads may still fork
    return *made;
}

}  // namespace

void run_native_before() noexcept {
    Native& n = native();
    n.lock.lock();
    if (n.depth++ >= Native::kNested) return;
    List::Round& round = n.rounds[n.depth - 1];
    round = n.list.begin();
    round.before([](List::Entry& entry) {
        const NativeHandlers& h = entry.handler;
        if (h.before != nullptr) h.before(h.context);
        return true;
    });
}

namespace {

FORKFD_IN_CHILD void run_after(void (*NativeHandlers::*which)(void*) noexcept) noexcept {
    Native& n = native();
    if (!n.lock.mine()) return;  // a fork that began before bind_once()
    if (n.depth <= Native::kNested) {
        List::Round& round = n.rounds[n.depth - 1];
        round.after([which](List::Entry& entry) {
            const NativeHandlers& h = entry.handler;
            if (h.*which != nullptr) (h.*which)(h.context);
        });
        const auto dropped = n.list.end();
    }
    --n.depth;
    n.lock.unlock();
}

}  // namespace

void run_native_in_parent() noexcept { run_after(&NativeHandlers::in_parent); }
// Locked here too, by the one thread that the child has.
FORKFD_IN_CHILD void run_native_in_child() noexcept { run_after(&NativeHandlers::in_child); }

namespace {

void bind_once(Native& n) {
    if (n.bound) return;
    const int err =
        ::pthread_atfork(run_native_before, run_native_in_parent, run_native_in_child);
    if (err != 0) throw std::system_error(err, std::generic_category(), "pthread_atfork");
    n.bound = true;
}

}  // namespace

NoForkNow::NoForkNow() noexcept {
    const KernelSigset all = ~KernelSigset{0};
    raw::call(SYS_rt_sigprocmask, SIG_SETMASK, raw::addr(&all), raw::addr(&mask_), sizeof all);
    native().lock.lock();
}

NoForkNow::~NoForkNow() {
    native().lock.unlock();
    raw::call(SYS_rt_sigprocmask, SIG_SETMASK, raw::addr(&mask_), 0, sizeof mask_);
}

int add_native(const NativeHandlers& handlers, int order) {
    const NoForkNow still;
    Native& n = native();
    bind_once(n);
    return n.list.add(handlers, order);
}

void remove_native(int id) {
    const NoForkNow still;
    native().list.remove(id);
}

}  // namespace forkfd
