// Counts of events in this process, for people to read; hence relaxed.
#pragma once

#include <atomic>
#include <cstdint>

namespace forkfd {

struct Counters {
    std::atomic<std::uint64_t> spawned{0};  // children that executed
    std::atomic<std::uint64_t> failed{0};   // spawns that raised
    std::atomic<std::uint64_t> reaped{0};   // children whose exit status was read
    std::atomic<std::uint64_t> forked{0};   // forks, counted in the parent by the at-fork handler
};

Counters& counters() noexcept;

inline void count(std::atomic<std::uint64_t>& counter) noexcept {
    counter.fetch_add(1, std::memory_order_relaxed);
}

// In the child of fork(2): its parent's children are not its own.
inline void reset_counters() noexcept {
    Counters& c = counters();
    c.spawned = c.failed = c.reaped = c.forked = 0;
}

}  // namespace forkfd
