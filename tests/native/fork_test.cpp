// What runs around a fork(): the list, its binding to pthread_atfork, the fork lock, and
// descriptors that are something else for a moment.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <mutex>
#include <random>
#include <shared_mutex>
#include <system_error>
#include <thread>

#include "core/atfork/at_fork_list.h"
#include "core/atfork/atfork.h"
#include "core/atfork/fd_section.h"
#include "core/atfork/fork_lock.h"
#include "core/descriptors/descriptor.h"
#include "core/fork/child_actions.h"
#include "support.h"
#include "threads.h"

using namespace support;
using forkfd::AtForkList;
using forkfd::ChildActions;
using forkfd::FdSection;
using forkfd::UniqueFd;

namespace {

// Runs `body` in a child of fork(); its exit code, which fails the test if it was killed.
template <class Body>
int in_child_of_fork(Body body) {
    const pid_t pid = ::fork();
    CHECK(pid >= 0);
    if (pid == 0) ::_exit(body());
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status);
}

// 0 where it is open and marked, 1 where it is not marked, 2 where it is closed.
int state_of(int fd) {
    const int flags = ::fcntl(fd, F_GETFD);
    return flags < 0 ? 2 : (flags & FD_CLOEXEC) != 0 ? 0 : 1;
}

UniqueFd some_memory(const char* name) {
    UniqueFd fd(::memfd_create(name, MFD_CLOEXEC));
    CHECK(fd);
    return fd;
}

// A descriptor of the number, which is free otherwise.
UniqueFd at_number(int number, int source) {
    CHECK_EQ(::fcntl(number, F_GETFD), -1);
    CHECK_EQ(::dup3(source, number, O_CLOEXEC), number);
    return UniqueFd(number);
}

// The list as one would write it without any thought of cost.
struct Model {
    struct Item {
        int id, order;
        bool removed = false;
    };
    std::vector<Item> items;

    void add(int id, int order) {
        auto at = items.begin();
        while (at != items.end() && at->order <= order) ++at;
        items.insert(at, {id, order});
    }
    void remove(int id) {
        for (auto at = items.begin(); at != items.end(); ++at)
            if (at->id == id) {
                items.erase(at);
                return;
            }
    }
    bool has(int id) const {
        for (const Item& i : items)
            if (i.id == id) return true;
        return false;
    }
};

}  // namespace

// Some children start threads.
extern "C" const char* __tsan_default_options() { return "die_after_fork=0"; }

TEST(the_list_is_as_its_model) {
    for (unsigned seed = 0; seed < 300; ++seed) {
        std::mt19937 random(seed);
        const auto below = [&random](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
        AtForkList<int> list;  // a handler is a number: what it was added as
        Model model;
        int added = 0;
        std::vector<int> ids;
        const auto change = [&] {
            if (below(3) != 0 || ids.empty()) {
                const int order = below(4) - 1;
                const int id = list.add(++added, order);
                model.add(id, order);
                ids.push_back(id);
            } else {
                const int id = ids[static_cast<std::size_t>(below(static_cast<int>(ids.size())))];
                CHECK_EQ(list.remove(id), model.has(id));
                model.remove(id);
            }
        };
        for (int round = 0; round < 10; ++round) {
            for (int i = below(6); i > 0; --i) change();
            const Model start = model;
            auto fork = list.begin();
            const int refuser = below(4) == 0 && added > 0 ? 1 + below(added) : -1;
            // Handlers change the list while it runs.
            std::size_t reached = 0;
            bool refused = false;
            std::size_t next = start.items.size();
            const bool ok = fork.before([&](AtForkList<int>::Entry& e) {
                // The model: the next one down that is still there.
                while (next > 0 && !model.has(start.items[next - 1].id)) --next;
                CHECK(next > 0);
                CHECK_EQ(start.items[--next].id, e.id);
                if (below(3) == 0) change();
                if (e.handler != refuser) return true;
                refused = true;
                return false;
            });
            CHECK_EQ(ok, !refused);
            for (; !refused && next > 0; --next) CHECK(!model.has(start.items[next - 1].id));
            reached = refused ? next + 1 : 0;
            if (below(2) == 0) change();
            fork.after([&](AtForkList<int>::Entry& e) {
                while (reached < start.items.size() && !model.has(start.items[reached].id)) ++reached;
                CHECK(reached < start.items.size());
                CHECK_EQ(start.items[reached++].id, e.id);
                if (below(3) == 0) change();
            });
            for (; reached < start.items.size(); ++reached)
                CHECK(!model.has(start.items[reached].id));
            (void)list.end();
        }
    }
}

TEST(what_was_removed_goes_when_no_round_is_left) {
    AtForkList<std::shared_ptr<int>> list;
    std::weak_ptr<int> first, second;
    const auto add = [&list](std::weak_ptr<int>& watched) {
        auto handler = std::make_shared<int>();
        watched = handler;
        return list.add(std::move(handler));
    };
    const int id = add(first);
    const int other = add(second);
    list.begin();
    list.begin();
    CHECK(list.remove(id));
    CHECK(list.end().empty());
    CHECK(!first.expired());
    CHECK(list.end().size() == 1);  // for the caller to drop
    CHECK(first.expired());

    list.begin();
    list.begin();  // of a thread that is not in the child
    CHECK(list.remove(other));
    CHECK(list.end_but(1).empty());
    CHECK(!second.expired());
    CHECK(list.end_but(0).size() == 1);
    CHECK(second.expired());
    const int last = add(first);
    CHECK(list.remove(last));
    CHECK(first.expired());  // at once, where no round is under way
}

TEST(native_handlers_run_in_the_order_of_posix) {
    static std::array<char, 32> calls;
    static std::size_t length;
    static const auto record = [](char c) { calls[length++] = c; };
    std::vector<int> ids;
    struct Names {
        char before, parent, child;
    };
    static Names names[] = {{'a', '1', 'x'}, {'b', '2', 'y'}, {'c', '3', 'z'}};
    const int orders[] = {0, 0, -1};
    for (int i = 0; i < 3; ++i)
        ids.push_back(forkfd::add_native(
            {[](void* n) noexcept { record(static_cast<Names*>(n)->before); },
             [](void* n) noexcept { record(static_cast<Names*>(n)->parent); },
             [](void* n) noexcept { record(static_cast<Names*>(n)->child); }, &names[i]},
            orders[i]));
    length = 0;
    const auto calls_are = [](const char* wanted) {
        return std::string(calls.data(), length) == wanted ? 0 : 1;
    };
    CHECK_EQ(in_child_of_fork([&] { return calls_are("baczxy"); }), 0);
    CHECK_EQ(std::string(calls.data(), length), "bac312");
    forkfd::remove_native(ids[0]);
    length = 0;
    CHECK_EQ(in_child_of_fork([&] { return calls_are("bczy"); }), 0);
    forkfd::remove_native(ids[1]);
    forkfd::remove_native(ids[2]);
    length = 0;
    CHECK_EQ(in_child_of_fork([] { return static_cast<int>(length); }), 0);
    forkfd::remove_native(ids[2]);  // a second time: nothing
}

TEST(a_handler_may_fork_and_remove_itself) {
    struct Once {
        int id = 0, calls = 0;
    } once;
    once.id = forkfd::add_native({[](void* p) noexcept {
                                      auto* const o = static_cast<Once*>(p);
                                      if (++o->calls == 1) {
                                          const pid_t pid = ::fork();  // runs us again
                                          if (pid == 0) ::_exit(0);
                                          ::waitpid(pid, nullptr, 0);
                                      }
                                      forkfd::remove_native(o->id);
                                  },
                                  [](void* p) noexcept { static_cast<Once*>(p)->calls += 100; },
                                  nullptr, &once});
    CHECK_EQ(in_child_of_fork([] { return 0; }), 0);
    CHECK_EQ(once.calls, 2);
    CHECK_EQ(in_child_of_fork([] { return 0; }), 0);
    CHECK_EQ(once.calls, 2);
}

TEST(threads_add_and_remove_native_handlers_while_others_fork) {
    Threads forkers, changers;
    std::atomic<bool> stop{false};
    const int rounds = emulated() ? 20 : 300;
    for (int i = 0; i < 4; ++i)
        changers.start([&stop] {
            // What a handler reads is plain memory: the sanitizers report it if it is read
            // after remove_native(), or while another thread writes it.
            while (!stop) {
                auto* const count = new int[3]();
                const int id = forkfd::add_native(
                    {[](void* c) noexcept { ++static_cast<int*>(c)[0]; },
                     [](void* c) noexcept { ++static_cast<int*>(c)[1]; },
                     [](void* c) noexcept { ++static_cast<int*>(c)[2]; }, count});
                std::this_thread::yield();
                forkfd::remove_native(id);
                const bool paired = count[0] == count[1] && count[2] == 0;
                delete[] count;
                CHECK(paired);
            }
        });
    for (int i = 0; i < 4; ++i)
        forkers.start([rounds] {
            for (int round = 0; round < rounds; ++round)
                CHECK_EQ(in_child_of_fork([] { return 7; }), 7);
        });
    forkers.join();
    stop = true;
    changers.join();
}

TEST(a_signal_handler_forks_at_any_moment) {
    static std::atomic<int> forks;
    forks = 0;
    struct sigaction act = {}, old;
    act.sa_handler = [](int) {
        const int saved = errno;
        const pid_t pid = ::fork();
        if (pid == 0) ::_exit(0);
        if (pid > 0) ++forks;
        while (pid > 0 && ::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {}
        errno = saved;
    };
    CHECK_EQ(::sigaction(SIGUSR1, &act, &old), 0);
    std::atomic<bool> stop{false};
    std::atomic<pthread_t> target{};
    Threads threads;
    threads.start([&] {
        target = ::pthread_self();
        // System calls and words only: fork() of a C library is safe in a handler no more
        // than malloc is, where that is what was interrupted.
        const UniqueFd file = some_memory("here");
        while (!stop) {
            CHECK(forkfd::fork_lock().try_lock_for(std::chrono::milliseconds(1000)));
            forkfd::fork_lock().unlock();
            forkfd::fork_lock().lock_shared();
            forkfd::fork_lock().unlock_shared();
            const forkfd::NoForkNow still;
        }
    });
    while (target.load() == pthread_t()) std::this_thread::yield();
    const int wanted = emulated() ? 10 : 200;
    while (forks < wanted) {
        const int seen = forks;
        CHECK_EQ(::pthread_kill(target, SIGUSR1), 0);
        while (forks == seen) std::this_thread::yield();
    }
    stop = true;
    threads.join();
    CHECK_EQ(::sigaction(SIGUSR1, &old, nullptr), 0);
}

TEST(many_hold_the_fork_lock_shared_and_one_exclusively) {
    int plain = 0;  // ThreadSanitizer reports it if the lock does not order its uses
    std::atomic<int> readers{0}, most{0};
    Threads threads;
    const int rounds = emulated() ? 200 : 3000;
    for (int i = 0; i < 4; ++i)
        threads.start([&] {
            for (int round = 0; round < rounds; ++round) {
                const std::shared_lock<forkfd::ForkLock> shared(forkfd::fork_lock());
                const int now = ++readers;
                if (now > most) most = now;
                const std::shared_lock<forkfd::ForkLock> again(forkfd::fork_lock());
                CHECK(plain >= 0);
                --readers;
            }
        });
    for (int i = 0; i < 3; ++i)
        threads.start([&] {
            for (int round = 0; round < rounds; ++round) {
                // A short time, so that some give up.
                if (!forkfd::fork_lock().try_lock_for(std::chrono::milliseconds(round % 3))) continue;
                CHECK_EQ(readers.load(), 0);
                plain = -1;
                forkfd::fork_lock().lock_shared();  // only counts
                forkfd::fork_lock().unlock_shared();
                plain = 1;
                forkfd::fork_lock().unlock();
            }
        });
    threads.join();
    CHECK(forkfd::fork_lock().try_lock_for(std::chrono::milliseconds(0)));  // nothing is left
    forkfd::fork_lock().unlock();
}

TEST(who_reads_may_read_again_while_a_writer_waits) {
    forkfd::fork_lock().lock_shared();
    std::atomic<pid_t> tid{0};
    Threads threads;
    threads.start([&tid] {
        tid = forkfd::own_tid();
        while (!forkfd::fork_lock().try_lock_for(std::chrono::milliseconds(100))) {}
        forkfd::fork_lock().unlock();
    });
    while (tid == 0) std::this_thread::yield();
    wait_until_asleep(tid);
    std::atomic<bool> entered{false};
    threads.start([&entered] {  // a new reader waits for the writer
        while (!forkfd::fork_lock().try_lock_shared_for(std::chrono::milliseconds(100))) {}
        entered = true;
        forkfd::fork_lock().unlock_shared();
    });
    forkfd::fork_lock().lock_shared();  // would never return
    forkfd::fork_lock().unlock_shared();
    try {
        forkfd::fork_lock().try_lock_for(std::chrono::milliseconds(0));
        throw check::Failure("it would have waited for itself");
    } catch (const std::system_error& error) {
        CHECK_EQ(error.code().value(), EDEADLK);
    }
    forkfd::fork_lock().unlock_shared();
    threads.join();
    CHECK(entered);
}

TEST(a_child_finds_the_fork_lock_free_but_for_what_it_holds) {
    const auto free_in_child = [] {
        return in_child_of_fork([] {
            if (!forkfd::fork_lock().try_lock_for(std::chrono::milliseconds(0))) return 1;
            forkfd::fork_lock().unlock();
            return forkfd::fork_lock().try_lock_shared_for(std::chrono::milliseconds(0)) ? 0 : 2;
        });
    };
    for (const bool exclusive : {true, false}) {
        std::atomic<int> step{0};
        Threads threads;
        threads.start([&step, exclusive] {
            if (exclusive) forkfd::fork_lock().try_lock_for(std::chrono::milliseconds(1000));
            else forkfd::fork_lock().lock_shared();
            step = 1;
            while (step != 2) std::this_thread::yield();
            exclusive ? forkfd::fork_lock().unlock() : forkfd::fork_lock().unlock_shared();
        });
        while (step != 1) std::this_thread::yield();
        const int code = free_in_child();
        step = 2;
        threads.join();
        CHECK_EQ(code, 0);
    }
    CHECK(forkfd::fork_lock().try_lock_for(std::chrono::milliseconds(0)));
    CHECK(forkfd::fork_lock().try_lock_for(std::chrono::milliseconds(0)));
    const int code = in_child_of_fork([] {
        forkfd::fork_lock().unlock();
        bool entered = false;
        const auto enter = [&entered] {
            entered = forkfd::fork_lock().try_lock_shared_for(std::chrono::milliseconds(0));
        };
        std::thread(enter).join();
        if (entered) return 1;  // ours, still
        forkfd::fork_lock().unlock();
        std::thread(enter).join();
        return entered ? 0 : 2;
    });
    forkfd::fork_lock().unlock();
    forkfd::fork_lock().unlock();
    CHECK_EQ(code, 0);
}

TEST(what_children_do_to_their_descriptors) {
    const UniqueFd memory = some_memory("wanted");
    const UniqueFd closed = at_number(40, memory.get()), marked = at_number(41, memory.get());
    CHECK_EQ(::fcntl(marked.get(), F_SETFD, 0), 0);
    const std::string wanted = identity(memory.get());
    UniqueFd source = some_memory("source");
    const std::string moved = identity(source.get());
    ChildActions actions({40, 49}, {41, 49}, {{42, source.get()}, {43, 40}}, {}, 0);
    source.reset();
    const auto seen = [&] {
        return in_child_of_fork([&] {
            if (state_of(40) != 2 || state_of(41) != 0 || state_of(42) != 1) return 1;
            if (identity(42) != moved || identity(43) != wanted) return 2;
            return in_child_of_fork([&] { return identity(42) == moved ? 0 : 3; });
        });
    };
    CHECK_EQ(seen(), 0);
    CHECK_EQ(state_of(40) * 10 + state_of(41), 1);
    CHECK_EQ(state_of(42), 2);
    actions.unregister();
    CHECK_EQ(in_child_of_fork([] { return state_of(40) == 0 && state_of(42) == 2 ? 0 : 1; }), 0);
}

TEST(a_section_changes_and_restores_exactly) {
    const UniqueFd a = some_memory("a"), b = some_memory("b");
    const UniqueFd at40 = at_number(40, a.get()), at41 = at_number(41, b.get());
    const std::string first = identity(40), second = identity(41);
    CHECK_EQ(::fcntl(41, F_SETFD, 0), 0);
    const auto before = [&] {
        return identity(40) == first && identity(41) == second && state_of(40) == 0 &&
               state_of(41) == 1 && state_of(42) == 2;
    };
    const auto changed = [&] {
        return identity(40) == second && identity(41) == first && identity(42) == first &&
               state_of(40) == 1 && state_of(41) == 1 && state_of(42) == 1;
    };
    const std::vector<std::pair<int, int>> map = {{40, 41}, {41, 40}, {42, 40}};
    using Where = FdSection::Where;
    for (const Where where : {Where::both, Where::parent, Where::child}) {
        FdSection section(map, where);
        CHECK(where == Where::child ? before() : changed());
        const int code = in_child_of_fork([&] {
            if (where == Where::parent ? !before() : !changed()) return 1;
            const int grandchild = in_child_of_fork(
                [&] { return (where == Where::parent ? before() : changed()) ? 0 : 2; });
            if (grandchild != 0) return grandchild;
            section.end();
            return before() ? 0 : 3;
        });
        CHECK_EQ(code, 0);
        CHECK(where == Where::child ? before() : changed());
        section.end();
        CHECK(before());
        section.end();
    }
    for (const int wrong : {-1, 49, 1 << 30}) {
        const bool number = wrong == 1 << 30;
        try {
            const FdSection section({{40, 41}, {number ? wrong : 42, number ? 40 : wrong}}, Where::both);
            throw check::Failure("there is no such descriptor");
        } catch (const std::system_error& error) {
            CHECK_EQ(error.code().value(), EBADF);
        }
        CHECK(before());
    }
}

TEST(no_other_thread_forks_a_child_that_sees_a_section) {
    const UniqueFd a = some_memory("a"), b = some_memory("b");
    const UniqueFd at40 = at_number(40, a.get());
    const std::string first = identity(40);
    std::atomic<bool> stop{false};
    Threads changers, forkers;
    changers.start([&] {
        using Where = FdSection::Where;
        while (!stop) {
            for (const Where where : {Where::both, Where::parent, Where::child}) {
                FdSection section({{40, b.get()}, {42, b.get()}}, where);
                FdSection mark(std::vector<int>{a.get()});
                CHECK_EQ(in_child_of_fork([] { return 0; }), 0);
                mark.end();
                section.end();
            }
        }
    });
    const int rounds = emulated() ? 20 : 400;
    for (int i = 0; i < 2; ++i)
        forkers.start([&] {
            for (int round = 0; round < rounds; ++round) {
                const int code = in_child_of_fork([&] {
                    int open = 0;  // the duplicates of the section are gone too
                    for (int fd = 42; fd < 100; ++fd) open += state_of(fd) != 2;
                    if (open != 0) return 1;
                    if (state_of(40) != 0 || state_of(a.get()) != 0) return 2;
                    return identity(40) == first ? 0 : 3;
                });
                CHECK_EQ(code, 0);
            }
        });
    forkers.join();
    stop = true;
    changers.join();
}

int main(int argc, char** argv) {
    if (const auto code = helper(argc, argv)) return *code;
    forkfd::fork_lock();  // as the import of the module does
    return check::run(argc, argv);
}
