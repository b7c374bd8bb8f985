#include "core/base/probe.h"

#include <sys/vfs.h>

#include "core/base/pidfd.h"

namespace forkfd {

bool has_pidfd_open() noexcept { return static_cast<bool>(open_pidfd(::getpid())); }

bool has_pidfs() noexcept {
    constexpr long kPidFsMagic = 0x50494446;
    const UniqueFd self = open_pidfd(::getpid());
    struct statfs info;
    return self && ::fstatfs(self.get(), &info) == 0 && info.f_type == kPidFsMagic;
}

}  // namespace forkfd
