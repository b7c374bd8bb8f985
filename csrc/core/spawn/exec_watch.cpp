#include "core/spawn/exec_watch.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <string>

#include "core/base/error.h"
#include "core/base/pidfd.h"
#include "core/base/raw_syscall.h"

namespace forkfd {

namespace {

struct Pipe {
    UniqueFd reader, writer;
};

Pipe make_pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0)
        throw_sys(Stage::make_pipe, errno, "to see the child execute");
    return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

constexpr int kShortest = 1, kLongest = 20;  // milliseconds between two looks

// Also of a child whose status nobody waits for (SIGCHLD is ignored).
bool has_ended(pid_t pid) noexcept {
    siginfo_t info = {};
    const long got = raw::call(SYS_waitid, P_PID, pid, raw::addr(&info),
                               WEXITED | WNOHANG | WNOWAIT | __WALL, 0);
    return got == -ECHILD || (got == 0 && info.si_pid == pid);
}

// By proc_pid_stat(5): the flags of a process have PF_FORKNOEXEC until its exec.  False where
// /proc does not tell.
bool has_executed(pid_t pid) noexcept {
    constexpr unsigned kForkNoExec = 0x40;
    char path[32], text[512];
    std::snprintf(path, sizeof path, "/proc/%ld/stat", static_cast<long>(pid));
    const UniqueFd file(::open(path, O_RDONLY | O_CLOEXEC));
    const ssize_t size = file ? ::read(file.get(), text, sizeof text - 1) : -1;
    if (size <= 0) return false;
    text[size] = '\0';
    const char* const after_name = std::strrchr(text, ')');
    long parent = 0;
    unsigned flags = 0;
    if (after_name == nullptr ||
        std::sscanf(after_name + 1, " %*c %ld %*d %*d %*d %*d %u", &parent, &flags) != 2)
        return false;
    // Another parent: the /proc of another pid namespace.
    return parent == ::getpid() && (flags & kForkNoExec) == 0;
}

void send(pid_t pid, int pidfd, int sig) noexcept {
    if (pidfd >= 0) send_signal(pidfd, sig);
    else ::kill(pid, sig);  // ours and unreaped: no other
}

std::time_t now() noexcept {
    timespec time;
    ::clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
}

}  // namespace

ExecWatch::ExecWatch(bool wanted) {
    if (!wanted) return;
    Pipe fresh = make_pipe();
    reader_ = std::move(fresh.reader);
    writer_ = std::move(fresh.writer);
}

// The child's block names the number, so the pipe of a second attempt gets the same one.
void ExecWatch::arm() {
    if (!writer_ || reader_) return;
    Pipe fresh = make_pipe();
    if (::dup3(fresh.writer.get(), writer_.get(), O_CLOEXEC) < 0)
        throw_sys(Stage::make_pipe, errno, "to see the child execute");
    reader_ = std::move(fresh.reader);
}

void ExecWatch::wait(pid_t pid, int pidfd, const Report& report, bool table_is_shared,
                     bool changes_user) noexcept {
    if (!writer_) return;
    const volatile int& stage = report.stage;  // the child writes it
    // As long as the table is the child's too, our writing end is the child's.  Nobody but
    // ourselves can stop the child here.
    if (table_is_shared) {
        const timespec moment = {0, 20 * 1000};
        while (stage <= static_cast<int>(Stage::unshare_descriptors) && !has_ended(pid))
            ::nanosleep(&moment, nullptr);
    }
    ::dup3(reader_.get(), writer_.get(), O_CLOEXEC);  // closes our writing end
    std::time_t deadline = 0;  // 0: it has our user still, and may take its time
    for (int pause = kShortest;; pause = std::min(2 * pause, kLongest)) {
        // A fork of another thread may hold the writing end for as long as it lives: what the
        // pipe does not tell then, /proc does.
        pollfd end = {reader_.get(), POLLIN, 0};
        if (::poll(&end, 1, pause) > 0 || has_ended(pid) || has_executed(pid)) break;
        if (!changes_user || stage < static_cast<int>(Stage::user)) continue;
        if (deadline == 0) deadline = now() + kPatience;
        if (now() >= deadline) {
            gave_up_ = true;
            send(pid, pidfd, SIGKILL);
            break;
        }
        send(pid, pidfd, SIGCONT);
    }
    reader_.reset();
}

}  // namespace forkfd
