// Waits until a child has executed or ended, where CLONE_VFORK does not: qemu's user mode and
// valgrind run vfork as fork.  A pipe whose writing end is close-on-exec in the child.
#pragma once

#include "core/base/unique_fd.h"

namespace forkfd {

class ExecWatch {
  public:
    explicit ExecWatch(bool wanted);  // SysError
    int number() const noexcept { return writer_.get(); }  // of the writing end; -1: no pipe
    void arm();   // before a clone; the number stays the same.  SysError
    void wait() noexcept;  // after the clone

  private:
    UniqueFd reader_, writer_;
};

}  // namespace forkfd
