#include "core/passing/transfer_marker.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/base/memfd.h"
#include "core/passing/control_message.h"

namespace forkfd {

namespace {

constexpr int kSeals = kSealSeal | kSealShrink | kSealGrow | kSealWrite;

struct Content {
    char magic[24];
    std::uint64_t total;
};
constexpr Content kEmpty = {"forkfd descriptors 1\n", 0};

}  // namespace

UniqueFd make_marker(std::uint64_t total) noexcept {
    UniqueFd marker = make_memfd("forkfd-transfer");
    if (!marker) return marker;
    Content content = kEmpty;
    content.total = total;
    if (::pwrite(marker.get(), &content, sizeof content, 0) != sizeof content ||
        ::fcntl(marker.get(), kAddSeals, kSeals) != 0)
        return UniqueFd();
    return marker;
}

std::optional<std::uint64_t> read_marker(int fd) noexcept {
    // Only a sealed file in memory is read: reading another file might block.
    const int seals = ::fcntl(fd, kGetSeals);
    if (seals < 0 || (seals & kSeals) != kSeals) return std::nullopt;
    struct stat info;
    Content content;
    if (::fstat(fd, &info) != 0 || info.st_size != sizeof content ||
        ::pread(fd, &content, sizeof content, 0) != sizeof content ||
        std::memcmp(content.magic, kEmpty.magic, sizeof content.magic) != 0 ||
        content.total <= kMessageFds)
        return std::nullopt;
    return content.total;
}

bool same_marker(int a, int b) noexcept {
    struct stat x, y;
    return ::fstat(a, &x) == 0 && ::fstat(b, &y) == 0 && x.st_dev == y.st_dev &&
           x.st_ino == y.st_ino;
}

}  // namespace forkfd
