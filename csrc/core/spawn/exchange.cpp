#include "core/spawn/exchange.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <system_error>
#include <utility>

namespace forkfd {

namespace {

constexpr std::size_t kPipe = 64 * 1024;  // what a pipe holds, unless F_SETPIPE_SZ changed it
constexpr timespec kTracerPause = {0, 10 * 1000 * 1000};

[[noreturn]] void fail(const char* call) {
    throw std::system_error(errno, std::generic_category(), call);
}

}  // namespace

void Output::reserve(std::size_t capacity) {
    if (capacity <= capacity_) return;
    void* const grown = std::realloc(bytes_.get(), capacity);
    if (grown == nullptr) throw std::bad_alloc();
    (void)bytes_.release();
    bytes_.reset(static_cast<char*>(grown));
    capacity_ = capacity;
}

std::size_t Output::room() {
    if (size_ == 0) return kPipe;
    // Doubled from a size on at which realloc() moves pages, not bytes.
    if (capacity_ - size_ < kPipe) reserve(std::max(2 * capacity_, 4 * kPipe));
    return capacity_ - size_;
}

long Output::read_from(int fd) {
    if (size_ == 0) {
        // Most programs write little: no page but those of the stack that hold it is touched.
        char first[kPipe];
        const long count = ::read(fd, first, sizeof first);
        if (count <= 0) return count;
        const auto bytes = static_cast<std::size_t>(count);
        reserve(bytes);
        std::memcpy(bytes_.get(), first, bytes);
        size_ = bytes;
        return count;
    }
    const std::size_t most = room();
    const long count = ::read(fd, bytes_.get() + size_, most);
    if (count > 0) size_ += static_cast<std::size_t>(count);
    return count;
}

Exchange::Exchange(std::vector<PipeEnd> pipes, UniqueFd pidfd, const char* input,
                   std::size_t size, std::optional<std::size_t> limit)
    : pidfd_(std::move(pidfd)), input_(input), left_(size), allowed_(limit) {
    for (PipeEnd& end : pipes) {
        pipes_[end.target].fd = std::move(end.fd);
        pipes_[end.target].given = true;
    }
}

Exchange::Exchange(int stdout_fd, int stderr_fd) : input_(nullptr), left_(0), borrowed_(true) {
    pipes_[1].fd = UniqueFd(stdout_fd);
    pipes_[2].fd = UniqueFd(stderr_fd);
    pipes_[1].given = stdout_fd >= 0;
    pipes_[2].given = stderr_fd >= 0;
}

Exchange::~Exchange() {
    if (borrowed_)
        for (Pipe& pipe : pipes_) (void)pipe.fd.release();
}

void Exchange::finish(Pipe& pipe) noexcept {
    if (borrowed_) (void)pipe.fd.release();
    else pipe.fd.reset();
}

const Output* Exchange::output(int target) const noexcept {
    return pipes_[target].given ? &pipes_[target].output : nullptr;
}

void Exchange::close_pipes() noexcept {
    for (Pipe& pipe : pipes_) pipe.fd.reset();
}

void Exchange::feed() {
    UniqueFd& fd = pipes_[0].fd;
    // A new pipe takes PIPE_BUF bytes without blocking.
    if (!fed_ && left_ > PIPE_BUF && ::fcntl(fd.get(), F_SETFL, O_WRONLY | O_NONBLOCK) != 0)
        fail("fcntl");
    fed_ = true;
    if (left_ > 0) {
        const long written = ::write(fd.get(), input_, left_);
        if (written < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (written < 0 && errno != EPIPE) fail("write");
        if (written < 0) left_ = 0;  // the child reads no more
        else input_ += written, left_ -= static_cast<std::size_t>(written);
    }
    if (left_ == 0) fd.reset();
}

void Exchange::collect(Pipe& pipe, bool writers_have_gone) {
    for (;;) {
        const std::size_t before = pipe.output.size();
        const std::size_t room = pipe.output.room();
        const long count = pipe.output.read_from(pipe.fd.get());
        if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (count < 0) fail("read");
        const auto bytes = static_cast<std::size_t>(count);
        if (allowed_ && bytes > *allowed_) {
            pipe.output.cut(before + *allowed_);
            allowed_ = 0;
            too_long_ = true;
            return;
        }
        if (allowed_) *allowed_ -= bytes;
        // Less than there was room for: without a writer the pipe is at its end.
        if (count == 0 || (writers_have_gone && bytes < room)) return finish(pipe);
        if (!writers_have_gone) return;
    }
}

Exchange::State Exchange::run(const Deadline& deadline) {
    if (pipes_[0].fd && !fed_) feed();
    for (;;) {
        pollfd polled[3];
        Pipe* of[3];
        nfds_t count = 0;
        for (Pipe& pipe : pipes_) {
            if (!pipe.fd) continue;
            const bool is_input = &pipe == pipes_;
            of[count] = &pipe;
            polled[count++] = {pipe.fd.get(), static_cast<short>(is_input ? POLLOUT : POLLIN), 0};
        }
        if (count == 0) return pidfd_ ? await_end(deadline) : State::ended;
        const int ms = deadline.milliseconds_left();
        const int ready = ::poll(polled, count, ms);
        if (ready < 0 && errno == EINTR) return State::interrupted;
        if (ready < 0) fail("poll");
        for (nfds_t i = 0; i < count; ++i) {
            const short events = polled[i].revents;
            if (events == 0) continue;
            if (of[i] == pipes_) {
                if ((events & POLLERR) != 0) left_ = 0;  // the child reads no more
                feed();
            } else if ((events & POLLIN) == 0) {
                finish(*of[i]);
            } else {
                collect(*of[i], (events & POLLHUP) != 0);
            }
            if (too_long_) return State::too_long;
        }
        // Also where data comes without end.
        if (ms == 0 && (pipes_[0].fd || pipes_[1].fd || pipes_[2].fd)) return State::timed_out;
    }
}

Exchange::State Exchange::await_end(const Deadline& deadline) {
    if (!deadline) return reap_ended() ? State::ended : State::interrupted;
    // It has most often ended: the pipes were closed by its exit.
    while (!(end_ = reap(pidfd_.get()))) {
        const int ms = deadline.milliseconds_left();
        const int ready = wait_readable(pidfd_.get(), ms);
        if (ready < 0 && errno == EINTR) return State::interrupted;
        if (ready < 0) fail("poll");
        if (ready == 0 && ms < Deadline::kDay) return State::timed_out;
        if (ready == 0) continue;
        if ((end_ = reap(pidfd_.get()))) break;
        // Its tracer reaps it first, ptrace(2), and nothing announces that it has.
        if (ms == 0) return State::timed_out;
        ::nanosleep(&kTracerPause, nullptr);
    }
    return State::ended;
}

bool Exchange::reap_ended() noexcept {
    if (!end_) end_ = reap_blocking(pidfd_.get());
    return end_.has_value();
}

void Exchange::rest() {
    for (Pipe* pipe : {&pipes_[1], &pipes_[2]}) {
        while (pipe->fd && !too_long_) {
            pollfd polled = {pipe->fd.get(), POLLIN, 0};
            if (::poll(&polled, 1, 0) != 1) break;
            if ((polled.revents & POLLIN) == 0) pipe->fd.reset();
            else collect(*pipe, (polled.revents & POLLHUP) != 0);
        }
    }
}

}  // namespace forkfd
