// A page of slots that a supervisor and its workers share: a sealed memfd, mapped by all.
//
// A slot is one cache line, so that no two workers write to the same line.  Every field has one
// writing process: the worker writes its counters, heartbeat and deadline; the supervisor writes
// the worker's id and generation, while no worker has the slot.  No reader relies on the order
// of two writes, so all accesses are relaxed: plain loads and stores on x86-64 and aarch64.
// Counters that several threads of a worker may add to are added to atomically.
//
// Programs in other languages read and write the page too: a header and slots of eight 64-bit
// words, in the order below, in the machine's byte order.  A change of either is a new version.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "core/base/unique_fd.h"

namespace forkfd {

constexpr std::size_t kCacheLine = 64;
constexpr std::uint32_t kPageVersion = 1;
constexpr std::uint32_t kMaxSlots = 65536;

using Word = std::atomic<std::uint64_t>;
static_assert(Word::is_always_lock_free, "a lock would belong to one process");

struct alignas(kCacheLine) PageHeader {
    char magic[16];
    std::uint32_t version;
    std::uint32_t slot_size;
    std::uint32_t slot_count;
    std::uint32_t unused;
    Word generation;  // of the service; written by the supervisor alone
    std::uint64_t reserved[3];
};

// Nanoseconds of CLOCK_MONOTONIC, which all processes of a time namespace share; 0: never.
struct alignas(kCacheLine) PageSlot {
    Word requests;
    Word errors;
    Word in_flight;
    Word beat_ns;
    Word deadline_ns;  // the work at hand is done by then, or the worker is stuck; 0: none
    Word ready_ns;     // the time at which the worker became ready; 0: it is not
    Word worker;       // worker_id; 0: free
    Word generation;

    void beat() noexcept;
    void add(std::uint64_t more_requests, std::uint64_t more_errors) noexcept;
    void begin() noexcept;
    void end(std::uint64_t more_errors) noexcept;
    void set_ready(bool ready) noexcept;
    // Assign the slot to another worker, and clear all other fields; worker 0 frees it.
    void claim(std::uint64_t by, std::uint64_t of_generation) noexcept;
};

static_assert(sizeof(PageHeader) == kCacheLine && sizeof(PageSlot) == kCacheLine);

std::uint64_t monotonic_ns() noexcept;

// Make a memfd of that many slots, close-on-exec, sealed against any change of its size: a file
// that shrinks would kill every process that touches its mapping, by SIGBUS.
// std::invalid_argument: not 1 to kMaxSlots; std::system_error.
UniqueFd create_page(std::uint32_t slots);

// The mapping of a page, by a descriptor that is borrowed for the constructor only.
class PageMapping {
  public:
    // std::invalid_argument names the kind of file that the descriptor is; std::system_error.
    explicit PageMapping(int fd);
    ~PageMapping();
    PageMapping(const PageMapping&) = delete;
    PageMapping& operator=(const PageMapping&) = delete;

    std::uint32_t size() const noexcept { return slot_count_; }
    PageHeader& header() const noexcept { return *header_; }
    PageSlot& slot(std::uint32_t index) const noexcept;  // below size()

  private:
    PageHeader* header_ = nullptr;
    std::size_t bytes_ = 0;
    std::uint32_t slot_count_ = 0;  // a copy: other processes may write to the header
};

}  // namespace forkfd
