// Sealable files in memory, memfd_create(2).
#pragma once

#include <cerrno>

#include "core/base/kernel_flags.h"
#include "core/base/raw_syscall.h"
#include "core/base/unique_fd.h"

namespace forkfd {

// Make a memfd that is close-on-exec, and sealed against execution from Linux 6.3 on.  Empty and
// errno on failure.
inline UniqueFd make_memfd(const char* name) noexcept {
    const auto make = [name](unsigned flags) {
        return raw::call(SYS_memfd_create, raw::addr(name),
                         kMemfdCloexec | kMemfdAllowSealing | flags);
    };
    long fd = make(kMemfdNoexecSeal);
    if (fd == -EINVAL) fd = make(0);
    if (fd < 0) errno = static_cast<int>(-fd);
    return UniqueFd(fd < 0 ? -1 : static_cast<int>(fd));
}

}  // namespace forkfd
