// The input and the output of a child until its end, in one loop of poll(2): its pipes are
// written, read and closed, and it is reaped.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "core/base/deadline.h"
#include "core/base/pidfd.h"
#include "core/spawn/spawn_fds.h"

namespace forkfd {

// Bytes that grow in place: std::string would write each of them twice.
class Output {
  public:
    const char* data() const noexcept { return bytes_.get(); }
    std::size_t size() const noexcept { return size_; }
    // Reads once what the pipe has, up to room() bytes; returns as read(2).  std::bad_alloc.
    long read_from(int fd);
    std::size_t room();
    void cut(std::size_t size) noexcept { size_ = size; }

  private:
    struct Free {
        void operator()(char* p) const noexcept { std::free(p); }
    };
    void reserve(std::size_t capacity);

    std::unique_ptr<char, Free> bytes_;
    std::size_t size_ = 0, capacity_ = 0;
};

class Exchange {
  public:
    enum class State {
        ended,        // the child is reaped, and no process holds its pipes
        interrupted,  // by a signal: call again
        timed_out,
        too_long,     // the output exceeds its limit, to which it is cut
    };

    // The child's 0, 1 and 2 alone may be pipes.  `input` is borrowed.
    Exchange(std::vector<PipeEnd> pipes, UniqueFd pidfd, const char* input, std::size_t size,
             std::optional<std::size_t> limit);

    // Reads two pipes of somebody else's (-1: none) to their ends, and leaves them open.
    Exchange(int stdout_fd, int stderr_fd);
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;
    ~Exchange();

    State run(const Deadline& deadline);  // std::bad_alloc, std::system_error
    // Reads what the pipes of a killed child still hold.  Other processes may hold them too, so
    // their end is not awaited.
    void rest();
    void close_pipes() noexcept;
    // Waits for the end of the child and reaps it; false: interrupted by a signal, call again.
    bool reap_ended() noexcept;

    int pidfd() const noexcept { return pidfd_.get(); }
    const Output* output(int target) const noexcept;  // nullptr: it was not a pipe
    const ExitInfo& end() const noexcept { return *end_; }

  private:
    struct Pipe {
        UniqueFd fd;
        bool given = false;
        Output output;
    };

    void feed();
    void finish(Pipe& pipe) noexcept;
    void collect(Pipe& pipe, bool writers_have_gone);
    State await_end(const Deadline& deadline);

    Pipe pipes_[3];
    UniqueFd pidfd_;
    std::optional<ExitInfo> end_;
    const char* input_;
    std::size_t left_;
    bool borrowed_ = false;
    std::optional<std::size_t> allowed_;
    bool fed_ = false, too_long_ = false;
};

}  // namespace forkfd
