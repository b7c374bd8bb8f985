#include "core/page/shared_page.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>

#include "core/base/memfd.h"

namespace forkfd {

namespace {

constexpr char kMagic[16] = "forkfd page\n";
constexpr auto kRelaxed = std::memory_order_relaxed;

[[noreturn]] void fail(const char* call) {
    throw std::system_error(errno, std::generic_category(), call);
}

std::size_t bytes_of(std::uint32_t slots) {
    return sizeof(PageHeader) + std::size_t{slots} * sizeof(PageSlot);
}

// Return the number of slots; throw unless the descriptor is a whole page of this version.
std::uint32_t examine(int fd) {
    if (::fcntl(fd, F_GETFD) < 0) fail("fcntl");
    const int seals = ::fcntl(fd, kGetSeals);
    if (seals < 0) throw std::invalid_argument("is no memfd, and so no page of slots");
    if ((seals & kSealShrink) == 0)
        throw std::invalid_argument("is a memfd that may shrink, and so no page of slots");
    struct stat info;
    if (::fstat(fd, &info) != 0) fail("fstat");
    PageHeader header = {};
    const ssize_t read = ::pread(fd, static_cast<void*>(&header), sizeof header, 0);
    if (read < 0) fail("pread");
    if (read != sizeof header || std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
        throw std::invalid_argument("is a memfd, but no page of slots");
    const auto text = [](std::uint64_t number) { return std::to_string(number); };
    if (header.version != kPageVersion)
        throw std::invalid_argument("is a page of version " + text(header.version) +
                                    "; this program knows version " + text(kPageVersion));
    if (header.slot_size != sizeof(PageSlot) || header.slot_count < 1 ||
        header.slot_count > kMaxSlots ||
        static_cast<std::uint64_t>(info.st_size) != bytes_of(header.slot_count))
        throw std::invalid_argument(
            "is a damaged page: " + text(header.slot_count) + " slots of " +
            text(header.slot_size) + " bytes in " +
            text(static_cast<std::uint64_t>(info.st_size)) + " bytes");
    return header.slot_count;
}

}  // namespace

std::uint64_t monotonic_ns() noexcept {
    timespec now;
    ::clock_gettime(CLOCK_MONOTONIC, &now);  // the vDSO's: no system call
    return static_cast<std::uint64_t>(now.tv_sec) * 1000000000 +
           static_cast<std::uint64_t>(now.tv_nsec);
}

void PageSlot::beat() noexcept { beat_ns.store(monotonic_ns(), kRelaxed); }

// Atomic, since a worker may have many threads; wraps around, as unsigned does.
void PageSlot::add(std::uint64_t more_requests, std::uint64_t more_errors) noexcept {
    if (more_requests != 0) requests.fetch_add(more_requests, kRelaxed);
    if (more_errors != 0) errors.fetch_add(more_errors, kRelaxed);
}

void PageSlot::begin() noexcept { in_flight.fetch_add(1, kRelaxed); }

void PageSlot::end(std::uint64_t more_errors) noexcept {
    in_flight.fetch_sub(1, kRelaxed);
    add(1, more_errors);
}

void PageSlot::set_ready(bool ready) noexcept {
    ready_ns.store(ready ? monotonic_ns() : 0, kRelaxed);
}

void PageSlot::claim(std::uint64_t by, std::uint64_t of_generation) noexcept {
    for (Word* const word : {&requests, &errors, &in_flight, &beat_ns, &deadline_ns, &ready_ns})
        word->store(0, kRelaxed);
    generation.store(of_generation, kRelaxed);
    worker.store(by, kRelaxed);
}

UniqueFd create_page(std::uint32_t slots) {
    if (slots < 1 || slots > kMaxSlots)
        throw std::invalid_argument("a page has 1 to " + std::to_string(kMaxSlots) +
                                    " slots, not " + std::to_string(slots));
    UniqueFd page = make_memfd("forkfd-page");
    if (!page) fail("memfd_create");
    PageHeader header = {};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.version = kPageVersion;
    header.slot_size = sizeof(PageSlot);
    header.slot_count = slots;
    // Allocated now: memory that tmpfs cannot provide later would be a SIGBUS in a worker.
    const int refused = ::posix_fallocate(page.get(), 0, static_cast<off_t>(bytes_of(slots)));
    if (refused != 0) throw std::system_error(refused, std::generic_category(), "fallocate");
    if (::pwrite(page.get(), static_cast<const void*>(&header), sizeof header, 0) !=
        sizeof header)
        fail("pwrite");
    if (::fcntl(page.get(), kAddSeals, kSealShrink | kSealGrow | kSealSeal) != 0) fail("fcntl");
    return page;
}

PageMapping::PageMapping(int fd) : slot_count_(examine(fd)) {
    bytes_ = bytes_of(slot_count_);
    void* const at = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) fail("mmap");
    header_ = static_cast<PageHeader*>(at);
}

PageMapping::~PageMapping() { ::munmap(static_cast<void*>(header_), bytes_); }

PageSlot& PageMapping::slot(std::uint32_t index) const noexcept {
    return reinterpret_cast<PageSlot*>(header_ + 1)[index];
}

}  // namespace forkfd
