// Gauges: numbers of the process that a monitor reads by name.
//
// A gauge is read on the monitor's thread, without the GIL, about once a second and for
// each line of sched=.  It must not block, allocate or take a lock that a fork could leave
// locked.  Gauges are added once and never removed, so no removal waits for a reader.
#pragma once

#include <cstdint>

namespace forkfd {

struct Gauge {
    const char* name;                    // one word, of static storage
    std::int64_t (*read)(void* context) noexcept;  // negative: not available
    void* context;
};

constexpr int kMaxGauges = 16;

// Return the number of the new gauge, or -1: all kMaxGauges are taken.  The first three always
// exist: descriptors, threads, children (started by this process and not reaped).
int add_gauge(const Gauge& gauge) noexcept;
int gauge_count() noexcept;
const Gauge& gauge(int number) noexcept;

std::int64_t count_descriptors() noexcept;

}  // namespace forkfd
