// A page of slots that a supervisor and its workers share: a sealed memfd, mapped by all.
//
// A slot is one cache line, so that two workers never write to the same one.  Every field has
// one writing process: the worker its counters, beats and promises; the supervisor who it is,
// while nobody is there.  Nothing is told by the order of two fields, so all accesses are
// relaxed: on the machines we know they are plain loads and stores.  Only what threads of one
// worker may count at once is added to atomically.
//
// Other languages read and write it too: a header and slots of eight 64-bit words, in the
// order below, of the machine's byte order.  A change of either is another version.
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
static_assert(Word::is_always_lock_free, "a lock would be of one process");

struct alignas(kCacheLine) PageHeader {
    char magic[16];
    std::uint32_t version;
    std::uint32_t slot_size;
    std::uint32_t slot_count;
    std::uint32_t unused;
    Word generation;  // of the service: written by the supervisor alone
    std::uint64_t reserved[3];
};

// Nanoseconds are of CLOCK_MONOTONIC, which all processes of a time namespace share; 0: never.
struct alignas(kCacheLine) PageSlot {
    Word requests;
    Word errors;
    Word in_flight;
    Word beat_ns;
    Word deadline_ns;  // what it does now is done by then, or it is stuck
    Word ready_ns;     // since when it is ready
    Word worker;       // who; 0: nobody
    Word generation;

    void beat() noexcept;
    void add(std::uint64_t more_requests, std::uint64_t more_errors) noexcept;
    void begin() noexcept;
    void end(std::uint64_t more_errors) noexcept;
    void set_ready(bool ready) noexcept;
    // Everything of whoever had it before is gone.
    void claim(std::uint64_t by, std::uint64_t of_generation) noexcept;
};

static_assert(sizeof(PageHeader) == kCacheLine && sizeof(PageSlot) == kCacheLine);

std::uint64_t monotonic_ns() noexcept;

// A new memfd, close-on-exec, which nobody can make shorter or longer: a file that shrinks
// would kill by SIGBUS whoever touches its mapping.  std::invalid_argument: not 1 to kMaxSlots;
// std::system_error.
UniqueFd create_page(std::uint32_t slots);

// The mapping of such a descriptor, which is borrowed for the constructor only.
class PageMapping {
  public:
    // std::invalid_argument says what the descriptor is instead; std::system_error.
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
    std::uint32_t slot_count_ = 0;  // the other processes may write to the header
};

}  // namespace forkfd
