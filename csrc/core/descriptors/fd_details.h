// The kind of a descriptor and the details of that kind, from /proc/PID/fdinfo (proc(5)).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/descriptors/socket_details.h"

namespace forkfd {

struct FileDetails {
    std::uint64_t size = 0;
    unsigned links = 0;  // 0: deleted
};

struct PipeDetails {
    int capacity = 0, unread = 0;  // bytes
};

struct EpollWatch {
    int number;
    std::uint32_t events;
    std::uint64_t data, inode, device;  // of the file that was added
};

struct EpollDetails {
    std::vector<EpollWatch> watches;
};

struct EventfdDetails {
    std::uint64_t count = 0;
    std::optional<int> id;          // Linux 5.2
    std::optional<bool> semaphore;  // Linux 6.5
};

struct TimerfdDetails {
    int clock = 0;
    std::uint64_t ticks = 0;
    std::int64_t remaining_ns = 0, interval_ns = 0;
};

struct SignalfdDetails {
    std::uint64_t mask = 0;  // bit n-1 is signal n
};

struct InotifyWatch {
    int watch;
    std::uint32_t mask;
    std::uint64_t inode, device;
};

struct InotifyDetails {
    std::vector<InotifyWatch> watches;
};

struct PidfdDetails {
    int pid = -1;  // -1: ended and reaped; 0: in another pid namespace
};

struct MemfdDetails {
    std::uint64_t size = 0;
    std::optional<int> seals;  // F_SEAL_ bits, fcntl(2); only of our own process
};

using FdDetails = std::variant<std::monostate, FileDetails, PipeDetails, SocketDetails,
                               EpollDetails, EventfdDetails, TimerfdDetails, SignalfdDetails,
                               InotifyDetails, PidfdDetails, MemfdDetails>;

struct FileStat {
    unsigned mode = 0;  // 0: stat was refused
    unsigned links = 0, device_major = 0;
    std::uint64_t device = 0, inode = 0, size = 0;
    std::uint64_t mount = 0;  // 0: unknown (before Linux 5.8)
};

struct FdRow {
    int number = -1;
    std::string target;  // the target of the link in /proc/PID/fd
    FileStat stat;
    std::string kind;  // "socket", "epoll", ...
    int flags = 0;     // of F_GETFL
    bool cloexec = false;
    std::optional<std::int64_t> offset;  // of files that have one
    FdDetails details;
    int open_file = -1;  // index into FdTable::open_files; -1: unknown
};

// Fills in the fields that follow from target, stat and the text of fdinfo; with `own`, system
// calls on the descriptor add more.  All but SocketDetails.  False: target, stat and fdinfo
// belong to different files, since the number was reused in between.
bool describe(FdRow& row, std::string fdinfo, bool own);

// A device as in st_dev, from the kernel's internal number: 12 bits and 20 bits.
std::uint64_t device_of(unsigned sdev) noexcept;

// The entries of an epoll, from its fdinfo, in the kernel's order.
std::vector<EpollWatch> epoll_watches(std::string fdinfo);

}  // namespace forkfd
