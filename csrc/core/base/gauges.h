// What a monitor can read off the process: numbers by name.
//
// A gauge is read on the monitor's thread, without the GIL, about once a second and for
// each line of sched=.  It must not block, allocate or take a lock that a fork could leave
// locked.  Gauges are added once, for good, so nobody has to wait for a reader to remove one.
#pragma once

#include <cstdint>

namespace forkfd {

struct Gauge {
    const char* name;                    // a word; lives for ever
    std::int64_t (*read)(void* context) noexcept;  // negative: it cannot be known
    void* context;
};

constexpr int kMaxGauges = 16;

// Its number, or -1: there is no room.  Those that are always there come first:
// descriptors, threads, children (started by us and not reaped).
int add_gauge(const Gauge& gauge) noexcept;
int gauge_count() noexcept;
const Gauge& gauge(int number) noexcept;

std::int64_t count_descriptors() noexcept;

}  // namespace forkfd
