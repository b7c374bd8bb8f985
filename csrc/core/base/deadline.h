// One deadline for all the waits of an operation, for poll(2).
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>

namespace forkfd {

class Deadline {
  public:
    static constexpr int kDay = 24 * 60 * 60 * 1000;

    // std::nullopt: no deadline.
    explicit Deadline(std::optional<double> seconds) {
        // The clock's count overflows beyond a few hundred years.
        if (seconds && *seconds < 1e9)
            at_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                     std::chrono::duration<double>(std::max(*seconds, 0.0)));
    }
    explicit operator bool() const noexcept { return at_.has_value(); }
    // For poll(2): at most a day at once, -1: no deadline.
    int milliseconds_left() const {
        if (!at_) return -1;
        const std::chrono::duration<double, std::milli> left = *at_ - Clock::now();
        if (left.count() <= 0) return 0;
        return static_cast<int>(std::min(std::ceil(left.count()), double{kDay}));
    }

  private:
    using Clock = std::chrono::steady_clock;

    std::optional<Clock::time_point> at_;
};

}  // namespace forkfd
