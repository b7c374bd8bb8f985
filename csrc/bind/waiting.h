// Waiting for a descriptor as Python waits: the GIL is released, signal handlers run in between
// (so Ctrl-C ends it), one deadline covers all of it.
#pragma once

#include <chrono>
#include <optional>

// std::nullopt: no deadline.
class Deadline {
  public:
    explicit Deadline(std::optional<double> seconds);
    int milliseconds_left() const;  // for poll(2): at most a day at once, -1: no deadline

  private:
    std::optional<std::chrono::steady_clock::time_point> at_;
};

// Returns true when it is ready (`events` as for poll(2)), false when the time is up.
bool wait_ready(int fd, short events, const Deadline& deadline);
