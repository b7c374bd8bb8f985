// What bind_fork.cpp needs to know of bind_at_fork.cpp.
#pragma once

#include <pybind11/pybind11.h>

#include "core/timing.h"

namespace forkfd::bind {

// Until its end, a `before` handler that raises in this thread's next fork refuses the fork.
class Refusable {
  public:
    Refusable();
    Refusable(const Refusable&) = delete;
    Refusable& operator=(const Refusable&) = delete;
    ~Refusable();
    // Throws what the handler raised, if one did.
    void rethrow() const;
    bool refused() const;
};

// calls, failures, nanoseconds in all, and of the longest
pybind11::tuple numbers(const Timing& timing);

}  // namespace forkfd::bind
