// A snapshot of all descriptors of a process.
#pragma once

#include <sys/types.h>

#include <vector>

#include "core/descriptors/fd_details.h"

namespace forkfd {

struct FdTable {
    std::vector<FdRow> rows;                   // ascending
    std::vector<std::vector<int>> open_files;  // of each open file, its numbers
};

// pid 0: the table of the calling thread, which may have one of its own (unshare(2)).
// std::system_error with ESRCH: no such process; EACCES: access is denied (ptrace(2)).
FdTable fd_table(pid_t pid);

}  // namespace forkfd
