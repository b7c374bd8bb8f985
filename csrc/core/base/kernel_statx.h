// struct statx of linux/stat.h, which cannot be included beside musl's sys/stat.h.
#pragma once

#include <cstdint>

namespace forkfd {

struct KernelStatx {
    std::uint32_t mask, block_size;
    std::uint64_t attributes;
    std::uint32_t links, uid, gid;
    std::uint16_t mode, spare;
    std::uint64_t inode, size, blocks, attributes_mask;
    std::uint64_t times[8];
    std::uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
    std::uint64_t mount, more[13];
};
static_assert(sizeof(KernelStatx) == 256);

constexpr unsigned kStatxBasic = 0x7ff;   // STATX_BASIC_STATS
constexpr unsigned kStatxMount = 0x1000;  // STATX_MNT_ID, Linux 5.8
constexpr int kStatxDontSync = 0x4000;    // AT_STATX_DONT_SYNC: cached values suffice

}  // namespace forkfd
