// Calls, failures and durations of a handler.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <initializer_list>

namespace forkfd {

// Written by one thread at a time, under the GIL or the lock of the native list: hence without
// the bus lock of fetch_add, which a hundred handlers would pay four hundred times.  Atomic,
// because other threads may read meanwhile.
struct Timing {
    // CLOCK_MONOTONIC, not through libstdc++: a child would map its pages for this alone.
    static std::chrono::nanoseconds now() noexcept {
        timespec time;
        ::clock_gettime(CLOCK_MONOTONIC, &time);
        return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
    }

    std::atomic<std::uint64_t> calls{0}, failures{0}, total_ns{0}, longest_ns{0};

    void clear() noexcept {
        for (auto* const number : {&calls, &failures, &total_ns, &longest_ns}) *number = 0;
    }

    void add(std::chrono::nanoseconds taken, bool failed) noexcept {
        const auto ns = static_cast<std::uint64_t>(taken.count());
        increase(calls, 1);
        if (failed) increase(failures, 1);
        increase(total_ns, ns);
        if (ns > longest_ns.load(kRelaxed)) longest_ns.store(ns, kRelaxed);
    }

  private:
    static constexpr auto kRelaxed = std::memory_order_relaxed;
    static void increase(std::atomic<std::uint64_t>& number, std::uint64_t by) noexcept {
        number.store(number.load(kRelaxed) + by, kRelaxed);
    }
};

}  // namespace forkfd
