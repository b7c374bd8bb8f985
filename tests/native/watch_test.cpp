// FORKFD_DEBUG's lines, and the thread that watches.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <mutex>
#include <thread>

#include "core/atfork/fork_trace.h"
#include "core/base/counters.h"
#include "core/base/gauges.h"
#include "core/base/raw_syscall.h"
#include "core/base/trace.h"
#include "core/watch/dump.h"
#include "core/watch/sysmon.h"
#include "support.h"

using namespace support;
namespace trace = forkfd::trace;
using forkfd::Sysmon;
using forkfd::SysmonEvent;
using forkfd::SysmonSettings;
using forkfd::UniqueFd;
using Kind = SysmonEvent::Kind;

namespace {

constexpr std::uint64_t kMs = 1000000;
constexpr unsigned kAll = trace::kFork | trace::kExec | trace::kEpoll | trace::kSched;

// Lines go into a pipe until the end of the scope.
class Lines {
  public:
    Lines() {
        int ends[2];
        CHECK_EQ(::pipe2(ends, O_CLOEXEC), 0);
        reader_ = UniqueFd(ends[0]);
        writer_ = UniqueFd(ends[1]);
        trace::configure(kAll, writer_.get(), false);
    }
    ~Lines() { trace::configure(0, 2, false); }
    int writer() const { return writer_.get(); }
    void end() {
        trace::configure(0, 2, false);
        writer_.reset();
    }
    // All of them, until the end().
    std::vector<std::string> read() {
        std::string text;
        char part[4096];
        for (ssize_t n; (n = ::read(reader_.get(), part, sizeof part)) > 0;)
            text.append(part, static_cast<std::size_t>(n));
        std::vector<std::string> lines;
        for (std::size_t at = 0, end; (end = text.find('\n', at)) != std::string::npos; at = end + 1)
            lines.push_back(text.substr(at, end - at));
        return lines;
    }
    std::vector<std::string> take() {
        end();
        return read();
    }

  private:
    UniqueFd reader_, writer_;
};

bool has(const std::string& line, const std::string& part) {
    return line.find(part) != std::string::npos;
}

// A lock that another thread may hold, which the helper takes, and the helper.
class Watched {
  public:
    explicit Watched(const SysmonSettings& settings) : monitor(settings) {
        helper_ = std::thread([this] { help(); });
        monitor.start();
    }
    ~Watched() {
        monitor.stop();
        helper_.join();
    }
    // The first of this kind; wait_for() waits for one, however long it takes.
    std::optional<SysmonEvent> seen(Kind kind) {
        const std::lock_guard<std::mutex> lock(mutex_);
        return find(kind);
    }
    SysmonEvent wait_for(Kind kind) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            if (const auto event = find(kind)) return *event;
            told_.wait(lock);
        }
    }

    std::mutex gil;
    Sysmon monitor;

  private:
    std::optional<SysmonEvent> find(Kind kind) const {
        for (const SysmonEvent& event : seen_)
            if (event.kind == kind) return event;
        return std::nullopt;
    }
    void help() {
        for (;;) {
            if (monitor.begin_wait()) monitor.wait();
            std::optional<SysmonEvent> event;
            {
                const std::lock_guard<std::mutex> held(gil);
                event = monitor.take();
            }
            if (!event) return;
            const std::lock_guard<std::mutex> lock(mutex_);
            seen_.push_back(*event);
            told_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable told_;
    std::vector<SysmonEvent> seen_;
    std::thread helper_;
};

int dump_pipe = -1;

// A handler until the end of the scope.
class Handled {
  public:
    Handled(int signal, void (*handler)(int)) : signal_(signal) {
        struct sigaction action = {};
        action.sa_handler = handler;
        CHECK_EQ(::sigaction(signal, &action, &before_), 0);
    }
    ~Handled() { ::sigaction(signal_, &before_, nullptr); }

  private:
    int signal_;
    struct sigaction before_ = {};
};

void demand_dumps() {
    if (emulated()) throw check::Skip("qemu's user mode has no clone without an exit signal");
    // Its runtime keeps signals back until a call that it intercepts; the copy makes none.
#ifdef __SANITIZE_THREAD__
    throw check::Skip("ThreadSanitizer delays signals");
#endif
}

std::atomic<std::int64_t> level{0};
std::int64_t read_level(void* context) noexcept {
    return *static_cast<std::atomic<std::int64_t>*>(context);
}

}  // namespace

TEST(a_line_says_what_it_was_given) {
    Lines lines;
    const std::uint64_t begun = trace::now_ns();
    trace::Line("exec", "started", "a \"b\"\\\n\x01\x7f c\xc3\xbc")
        .field("least", (-9223372036854775807LL) - 1).field("zero", 0).duration(begun);
    const std::vector<std::string> seen = lines.take();
    CHECK_EQ(seen.size(), 1U);
    CHECK_EQ(seen[0].find("forkfd t="), 0U);
    CHECK(has(seen[0], " pid=" + std::to_string(::getpid()) + " tid="));
    CHECK(has(seen[0], " event=exec stage=started "));
    CHECK(has(seen[0], " subject=\"a \\\"b\\\"\\\\\\x0a\\x01\\x7f c\xc3\xbc\" "));
    CHECK(has(seen[0], " least=-9223372036854775808 zero=0 us="));
}

TEST(a_line_is_never_longer_than_it_may_be) {
    Lines lines;
    {
        trace::Line line("exec", "long", std::string(10000, 'x'));
        for (int i = 0; i < 100; ++i) line.field("more", std::string(300, '\n')).field("n", i);
    }
    const std::vector<std::string> seen = lines.take();
    CHECK_EQ(seen.size(), 1U);
    CHECK(seen[0].size() < 1024);
    CHECK(has(seen[0], "subject=\"" + std::string(256, 'x') + "...\""));
    CHECK(has(seen[0], " n=0 n=1"));  // a field that does not fit is left out whole
    CHECK(!has(seen[0], "more="));
}

TEST(lines_of_many_threads_never_mix) {
    Lines lines;
    const std::string text(200, 'x');
    const int rounds = emulated() ? 20 : 500;
    std::atomic<int> waiting{8};
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i)
        threads.emplace_back([&, i] {
            for (--waiting; waiting > 0;) std::this_thread::yield();  // all at once
            for (int n = 0; n < rounds; ++n)
                trace::Line("exec", "thread", text).field("i", i).field("n", n);
        });
    std::thread ends([&] {
        for (std::thread& t : threads) t.join();
        lines.end();
    });
    std::map<std::string, int> seen;
    for (const std::string& line : lines.read()) {
        const std::size_t at = line.find(" event=");
        if (at != std::string::npos && line.find("forkfd t=") == 0) ++seen[line.substr(at)];
    }
    ends.join();
    CHECK_EQ(seen.size(), 8U * static_cast<unsigned>(rounds));
    for (int i = 0; i < 8; ++i)
        for (int n = 0; n < rounds; ++n)
            CHECK_EQ(seen[" event=exec stage=thread subject=\"" + text + "\" i=" +
                          std::to_string(i) + " n=" + std::to_string(n)], 1);
}

TEST(a_child_just_born_writes_lines_of_its_own) {
    forkfd::fork_trace::watch_forks();
    forkfd::counters().spawned = 5;
    const std::uint64_t before = forkfd::counters().forked;
    Lines lines;
    const pid_t pid = ::fork();
    if (pid == 0) ::_exit(static_cast<int>(forkfd::counters().spawned));
    int status = -1;
    CHECK_EQ(::waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);  // the child has spawned nothing
    CHECK_EQ(forkfd::counters().forked, before + 1);
    std::map<std::string, std::string> pid_of;
    for (const std::string& line : lines.take()) {
        const std::size_t at = line.find("pid=") + 4;
        const std::size_t stage = line.find("stage=") + 6;
        pid_of[line.substr(stage, line.find(' ', stage) - stage)] =
            line.substr(at, line.find(' ', at) - at);
    }
    CHECK_EQ(pid_of.size(), 3U);
    CHECK_EQ(pid_of["before"], std::to_string(::getpid()));
    CHECK_EQ(pid_of["in_parent"], std::to_string(::getpid()));
    CHECK_EQ(pid_of["in_child"], std::to_string(pid));
}

TEST(a_spawn_is_told_step_by_step) {
    with_each_backend([](Backend backend) {
        CHECK_EQ(exit_code(spawn(plan_of_true())), 0);  // learns what is refused here
        Lines lines;
        CHECK_EQ(exit_code(spawn(plan_of_true())), 0);
        CHECK_EQ(error_of(plan_of({"/nonexistent"})).err(), ENOENT);
        const std::vector<std::string> seen = lines.take();
        const char* const stages[] = {"started", "clone", "executed", "reaped",
                                      "started", "clone", "failed"};
        CHECK_EQ(seen.size(), std::size(stages));
        for (std::size_t i = 0; i < seen.size(); ++i)
            CHECK(has(seen[i], std::string(" stage=") + stages[i]));
        CHECK(has(seen[1], forkfd::backend_name(expected(backend))));
        CHECK(has(seen[5], "step=\"exec\" errno=2"));
        CHECK(has(seen[6], "subject=\"/nonexistent\" step=\"exec\" on=\"/nonexistent\" errno=2"));
    });
}

TEST(what_the_kernel_refuses_is_told) {
    if (emulated()) throw check::Skip("it refuses on its own");
    Lines lines;
    without({forkfd::raw::nr_clone3}, [] { CHECK_EQ(exit_code(spawn(plan_of_true())), 0); });
    const std::vector<std::string> seen = lines.take();
    CHECK_EQ(seen.size(), 6U);
    CHECK(has(seen[1], "stage=clone ") && has(seen[1], "backend=\"clone3\" errno=38 us="));
    CHECK(has(seen[2], "stage=give_way ") && has(seen[2], "without=\"clone3\" errno=38"));
    CHECK(has(seen[3], "stage=clone ") && has(seen[3], "backend=\"clone\" child="));
}

TEST(an_owned_target_gets_no_lines_once_it_is_another_file) {
    char path[] = "/tmp/forkfd-trace-XXXXXX";
    const int owned = ::mkostemp(path, O_CLOEXEC);
    CHECK(owned >= 0);
    ::unlink(path);
    const UniqueFd same(::fcntl(owned, F_DUPFD_CLOEXEC, 0));
    trace::configure(kAll, owned, true);
    trace::Line("exec", "before");
    char other[] = "/tmp/forkfd-trace-XXXXXX";
    const UniqueFd replaced(::mkostemp(other, O_CLOEXEC));
    ::unlink(other);
    CHECK_EQ(::dup3(replaced.get(), owned, O_CLOEXEC), owned);
    trace::Line("exec", "after");
    trace::configure(0, 2, false);
    CHECK_EQ(::lseek(replaced.get(), 0, SEEK_END), 0);
    CHECK(::lseek(same.get(), 0, SEEK_END) > 0);
    CHECK_EQ(::close(owned), 0);  // not ours any more, so it was left open
}

TEST(lost_lines_are_counted_and_errno_is_kept) {
    constexpr int kNumber = 99;
    Lines lines;
    trace::configure(kAll, kNumber, false);
    errno = ENOTNAM;
    trace::Line("exec", "lost");
    trace::Line("exec", "lost");
    CHECK_EQ(errno, ENOTNAM);
    CHECK_EQ(::dup3(lines.writer(), kNumber, O_CLOEXEC), kNumber);
    trace::Line("exec", "found");
    trace::Line("exec", "found");
    CHECK_EQ(::close(kNumber), 0);
    const std::vector<std::string> seen = lines.take();
    CHECK_EQ(seen.size(), 2U);
    CHECK(has(seen[0], "stage=found lost=2"));
    CHECK(!has(seen[1], "lost"));
}

TEST(a_lock_that_is_held_is_seen_and_dumped) {
    demand_dumps();
    const int dump_signal = forkfd::unused_signal();
    CHECK(dump_signal > 34);
    const Handled handled(dump_signal, [](int) {
        const pid_t pid = static_cast<pid_t>(forkfd::raw::call(SYS_getpid));
        CHECK_EQ(::write(dump_pipe, &pid, sizeof pid), static_cast<ssize_t>(sizeof pid));
    });
    CHECK(forkfd::unused_signal() < dump_signal);
    int ends[2];
    CHECK_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const UniqueFd reader(ends[0]), writer(ends[1]);
    dump_pipe = writer.get();
    SysmonSettings settings;
    settings.gil_stall = 50 * kMs;
    settings.interval = 5 * kMs;
    settings.dump_signal = dump_signal;
    Watched watched(settings);
    watched.wait_for(Kind::turn);
    pid_t copy = 0;
    {
        const std::lock_guard<std::mutex> held(watched.gil);
        CHECK_EQ(::read(reader.get(), &copy, sizeof copy), static_cast<ssize_t>(sizeof copy));
    }
    CHECK(watched.wait_for(Kind::gil_stalled).ns >= settings.gil_stall);
    CHECK(copy > 0 && copy != ::getpid());
}

TEST(a_dump_that_crashes_or_hangs_is_only_the_copys_end) {
    demand_dumps();
    const std::atomic<std::uint32_t> go_on{0}, give_up{1};
    const int dump_signal = forkfd::unused_signal();
    {
        const Handled crashes(dump_signal, [](int) { __builtin_trap(); });
        CHECK_EQ(forkfd::dump_in_a_copy(dump_signal, go_on), 0);
    }
    const Handled hangs(dump_signal, [](int) {
        for (;;) ::pause();
    });
    CHECK_EQ(forkfd::dump_in_a_copy(dump_signal, give_up), 0);
}

TEST(a_lock_that_is_held_is_seen) {
    SysmonSettings settings;
    settings.gil_stall = 50 * kMs;
    settings.interval = 5 * kMs;
    Watched watched(settings);
    watched.wait_for(Kind::turn);
    std::optional<SysmonEvent> seen;
    while (!(seen = watched.seen(Kind::gil_stalled))) {
        const std::lock_guard<std::mutex> held(watched.gil);
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
    }
    CHECK(seen->ns >= settings.gil_stall);
}

TEST(a_loop_that_does_not_answer_is_seen) {
    SysmonSettings settings;
    settings.loop_stall = 50 * kMs;
    settings.interval = 5 * kMs;
    Watched watched(settings);
    watched.monitor.loop_probed(2);
    watched.monitor.loop_replied(2);
    watched.monitor.loop_probed(3);
    const SysmonEvent event = watched.wait_for(Kind::loop_stalled);
    CHECK_EQ(event.index, 3);
    CHECK(event.ns >= settings.loop_stall);
}

TEST(descriptors_that_are_gained_are_seen) {
    SysmonSettings settings;
    settings.fd_growth = 10;
    settings.interval = 5 * kMs;
    Watched watched(settings);
    std::vector<UniqueFd> leaked;
    for (int i = 0; i < 300; ++i) leaked.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    std::atomic<bool> seen{false};
    std::thread more([&] {  // the first poll may have come in between: repeat until it is seen
        while (!seen && leaked.size() < 900) {
            leaked.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
    });
    const SysmonEvent event = watched.wait_for(Kind::fd_growth);
    seen = true;
    more.join();
    CHECK(event.index > 10);
    CHECK(event.value > event.index);
}

TEST(a_gauge_beyond_its_bound_is_told_once) {
    static const int number = forkfd::add_gauge({"level", read_level, &level});
    CHECK_EQ(number, forkfd::gauge_count() - 1);
    SysmonSettings settings;
    settings.interval = 5 * kMs;
    settings.gauge_bounds[static_cast<std::size_t>(number)] = 3;
    level = 4;
    Watched watched(settings);
    const SysmonEvent event = watched.wait_for(Kind::gauge);
    CHECK_EQ(event.index, number);
    CHECK_EQ(event.value, 4);
}

TEST(there_is_room_for_so_many_gauges) {
    while (forkfd::add_gauge({"level", read_level, &level}) >= 0) {}
    CHECK_EQ(forkfd::gauge_count(), forkfd::kMaxGauges);
}

TEST(descriptors_and_threads_are_counted) {
    const std::int64_t before = forkfd::count_descriptors();
    const UniqueFd one(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    CHECK_EQ(forkfd::count_descriptors(), before + 1);
    const std::int64_t threads = forkfd::gauge(1).read(nullptr);
    CHECK(threads >= 1);
    SysmonSettings settings;
    Watched watched(settings);
    if (!emulated()) CHECK_EQ(forkfd::gauge(1).read(nullptr), threads + 2);
}

TEST(a_child_of_fork_has_no_such_thread_and_stops_it_all_the_same) {
    SysmonSettings settings;
    settings.gil_stall = 1000 * kMs;
    Watched watched(settings);
    const pid_t pid = ::fork();
    if (pid == 0) {
        watched.monitor.stop();
        ::_exit(watched.monitor.take() ? 1 : 0);
    }
    int status = -1;
    CHECK_EQ(::waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
}

int main(int argc, char** argv) {
    if (const auto code = helper(argc, argv)) return *code;
    return check::run(argc, argv);
}
