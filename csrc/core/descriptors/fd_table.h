// A snapshot of all descriptors of a process.
#pragma once

#include <sys/types.h>

#include <vector>

#include "core/descriptors/fd_details.h"

namespace forkfd {

struct FdTable {
    std::vector<FdRow> rows;                   // ascending
    std::vector<std::vector<int>> open_files;  // the numbers that each of them is open at
};

// pid 0: of the calling thread, which may have a table of its own (unshare(2)).
// std::system_error with ESRCH: there is no such process; EACCES: it may not be looked at.
FdTable fd_table(pid_t pid);

}  // namespace forkfd
