// Constants and structures of the kernel that are missing from older headers (glibc 2.28, musl).
// Defined here and nowhere else.
#pragma once

#include <cstddef>
#include <cstdint>

namespace forkfd {

// clone(2), clone3(2): linux/sched.h
constexpr std::uint64_t kCloneNewTime = 0x80;  // Linux 5.6; clone() reads it as the exit signal
constexpr std::uint64_t kClonePidfd = 0x1000;  // Linux 5.2
constexpr std::uint64_t kCloneNewCgroup = 0x2000000;          // Linux 4.6
constexpr std::uint64_t kCloneClearSighand = 0x100000000ULL;  // Linux 5.5, clone3() alone
constexpr std::uint64_t kCloneIntoCgroup = 0x200000000ULL;    // Linux 5.7, clone3() alone
// Flags that do not fit into clone().
constexpr std::uint64_t kClone3Only = kCloneNewTime | kCloneClearSighand | kCloneIntoCgroup;

struct KernelCloneArgs {  // struct clone_args
    std::uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
    std::uint64_t set_tid, set_tid_size, cgroup;
};
constexpr std::size_t kCloneArgsFirst = 64;   // Linux 5.3; a larger size is E2BIG before 5.7
constexpr std::size_t kCloneArgsCgroup = 88;  // Linux 5.7
static_assert(sizeof(KernelCloneArgs) == kCloneArgsCgroup);

// close_range(2): linux/close_range.h
constexpr unsigned kCloseRangeUnshare = 1U << 1;  // Linux 5.9
constexpr unsigned kCloseRangeCloexec = 1U << 2;  // Linux 5.11

// fcntl(2): linux/fcntl.h
constexpr int kDupfdQuery = 1024 + 3;  // F_DUPFD_QUERY, Linux 6.10
constexpr int kAddSeals = 1024 + 9, kGetSeals = 1024 + 10;  // F_ADD_SEALS, F_GET_SEALS
constexpr int kSealSeal = 0x1, kSealShrink = 0x2, kSealGrow = 0x4, kSealWrite = 0x8;

// memfd_create(2): linux/memfd.h
constexpr unsigned kMemfdCloexec = 1, kMemfdAllowSealing = 2;
constexpr unsigned kMemfdNoexecSeal = 8;  // Linux 6.3

struct LinuxDirent64 {  // getdents64(2)
    std::uint64_t ino;
    std::int64_t off;
    unsigned short reclen;
    unsigned char type;
    char name[1];
};

constexpr int kKcmpFile = 0, kKcmpEpollTfd = 7;  // kcmp(2): linux/kcmp.h
constexpr int kWaitPidfd = 3;                    // waitid(2): P_PIDFD, Linux 5.4

}  // namespace forkfd
