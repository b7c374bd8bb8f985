#include "core/base/gauges.h"

#include <fcntl.h>
#include <linux/stat.h>
#include <unistd.h>

#include <atomic>

#include "core/base/counters.h"
#include "core/base/kernel_flags.h"
#include "core/base/raw_syscall.h"

namespace forkfd {

namespace {

// Return -1 if it cannot be opened.  The descriptor used for reading is counted too.
std::int64_t count_entries(const char* path) noexcept {
    const long fd = raw::call(SYS_openat, AT_FDCWD, raw::addr(path),
                              O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -1;
    std::int64_t found = 0;
    alignas(LinuxDirent64) char buffer[4096];
    for (;;) {
        const long size = raw::call(SYS_getdents64, fd, raw::addr(buffer), sizeof buffer);
        if (size <= 0) break;
        for (long at = 0; at < size; ++found)
            at += reinterpret_cast<const LinuxDirent64*>(buffer + at)->reclen;
    }
    raw::call(SYS_close, fd);
    return found - 2;  // . and ..
}

bool stat_path(const char* path, struct statx& info) noexcept {
    return raw::call(SYS_statx, AT_FDCWD, raw::addr(path), 0, STATX_SIZE | STATX_NLINK,
                     raw::addr(&info)) == 0;
}

std::int64_t read_descriptors(void*) noexcept { return count_descriptors(); }

// proc(5): each task is a directory, and so a link to its parent.
std::int64_t read_threads(void*) noexcept {
    struct statx info;
    return stat_path("/proc/self/task", info) ? std::int64_t{info.stx_nlink} - 2 : -1;
}

std::int64_t read_children(void*) noexcept {
    const Counters& c = counters();
    const std::uint64_t reaped = c.reaped.load(std::memory_order_relaxed);
    const std::uint64_t spawned = c.spawned.load(std::memory_order_relaxed);
    return spawned > reaped ? static_cast<std::int64_t>(spawned - reaped) : 0;
}

Gauge gauges[kMaxGauges] = {{"descriptors", read_descriptors, nullptr},
                            {"threads", read_threads, nullptr},
                            {"children", read_children, nullptr}};
std::atomic<int> claimed{3}, published{3};

}  // namespace

// The directory's size is the number of descriptors since Linux 6.2, and 0 before.
std::int64_t count_descriptors() noexcept {
    struct statx info;
    if (stat_path("/proc/self/fd", info) && info.stx_size != 0)
        return static_cast<std::int64_t>(info.stx_size);
    const std::int64_t listed = count_entries("/proc/self/fd");
    return listed > 0 ? listed - 1 : listed;
}

int add_gauge(const Gauge& added) noexcept {
    int number = claimed.load();
    do if (number == kMaxGauges) return -1;
    while (!claimed.compare_exchange_weak(number, number + 1));
    gauges[number] = added;
    int before = number;  // in order: all gauges below the count are filled
    while (!published.compare_exchange_weak(before, number + 1)) before = number;
    return number;
}

int gauge_count() noexcept { return published.load(); }
const Gauge& gauge(int number) noexcept { return gauges[number]; }

}  // namespace forkfd
