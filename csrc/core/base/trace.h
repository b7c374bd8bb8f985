// FORKFD_DEBUG: one line per event, written by one write(2), so that lines of many threads
// and processes never mix (pipe(7): up to PIPE_BUF).
//
//     if (trace::on(trace::kExec)) trace::Line("exec", "started", program).field("child", pid);
//
// Makes raw system calls only: no allocation, no libc, no lock, errno is preserved.  So it may
// be called with and without the GIL, in a new child of fork(2), in handlers of
// pthread_atfork(3) and of signals.  Not behind the fence: the parent traces the steps of a child
// on shared memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace forkfd::trace {

enum Topic : unsigned { kFork = 1, kExec = 2, kEpoll = 4, kSched = 8 };

inline std::atomic<unsigned> topics{0};

// One relaxed load.
inline bool on(Topic topic) noexcept {
    return (topics.load(std::memory_order_relaxed) & topic) != 0;
}

// Send the lines about `wanted` (bits of Topic) to `fd` from now on.  An owned descriptor is
// closed when it is replaced, and written to only while it is still the same file: a program
// that closes all its descriptors gets no lines into a file that it opens next.
void configure(unsigned wanted, int fd, bool owned) noexcept;

std::uint64_t now_ns() noexcept;  // CLOCK_MONOTONIC

// forkfd t=SECONDS pid=N tid=N event=EVENT stage=STAGE [subject="text"] [name=number]...
//
// event, stage and names are words without spaces.  Text is quoted and escaped; text longer
// than kMaxText is cut and ends in "...".  A field that does not fit is left out.
class Line {
  public:
    static constexpr std::size_t kMaxText = 256;

    Line(const char* event, const char* stage, std::string_view subject = {}) noexcept;
    Line(const Line&) = delete;
    Line& operator=(const Line&) = delete;
    ~Line();  // writes the line

    Line& field(const char* name, std::string_view text) noexcept;
    Line& field(const char* name, long long number) noexcept;
    // Add us=, the microseconds from `start` (now_ns()) until now; nothing if start is 0.
    Line& duration(std::uint64_t start) noexcept;

  private:
    static constexpr std::size_t kSize = 1024;  // a quarter of PIPE_BUF, and of small stacks

    bool put(std::string_view text) noexcept;
    bool put(std::uint64_t number, int digits = 1) noexcept;
    bool begin(const char* name) noexcept;

    char buffer_[kSize];
    std::size_t size_ = 0;
};

}  // namespace forkfd::trace
