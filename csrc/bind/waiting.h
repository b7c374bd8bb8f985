// Waiting for a descriptor as Python waits: the GIL is released, signal handlers run in
// between (so Ctrl-C ends it), a deadline holds over all of it.
#pragma once

#include <chrono>
#include <optional>

// std::nullopt: without end.
class Deadline {
  public:
    explicit Deadline(std::optional<double> seconds);
    int milliseconds_left() const;  // for poll(2): at most a day at once, -1 without end

  private:
    std::optional<std::chrono::steady_clock::time_point> at_;
};

// True when it is ready (`events` as for poll(2)), false when the time is up.
bool wait_ready(int fd, short events, const Deadline& deadline);
