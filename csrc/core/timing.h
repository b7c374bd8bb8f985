// How often something ran, how often it failed, how long it took.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <initializer_list>

namespace forkfd {

struct Timing {
    using Clock = std::chrono::steady_clock;

    std::atomic<std::uint64_t> calls{0}, failures{0}, total_ns{0}, longest_ns{0};

    void clear() noexcept {
        for (auto* const number : {&calls, &failures, &total_ns, &longest_ns}) *number = 0;
    }

    void add(Clock::duration taken, bool failed) noexcept {
        const auto ns = static_cast<std::uint64_t>(
            std::chrono::duration_cast<std::chrono::nanoseconds>(taken).count());
        constexpr auto relaxed = std::memory_order_relaxed;
        calls.fetch_add(1, relaxed);
        if (failed) failures.fetch_add(1, relaxed);
        total_ns.fetch_add(ns, relaxed);
        std::uint64_t longest = longest_ns.load(relaxed);
        while (ns > longest && !longest_ns.compare_exchange_weak(longest, ns, relaxed)) {}
    }
};

}  // namespace forkfd
