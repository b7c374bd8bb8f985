// Waits until a child has executed or ended where CLONE_VFORK does not: qemu's user mode and
// valgrind run vfork as fork, and a child that changes its user is started without CLONE_VFORK.
// A pipe whose writing end is close-on-exec in the child.
//
// Between its setuid and its exec such a child may be stopped (SIGSTOP) by any process of its
// new user, and execute from a file system of that user's, which need not answer.  Under
// CLONE_VFORK the parent would wait for it in the kernel, deaf to every signal but SIGKILL.
#pragma once

#include <sys/types.h>

#include "core/base/unique_fd.h"
#include "core/spawn/child_args.h"

namespace forkfd {

class ExecWatch {
  public:
    explicit ExecWatch(bool wanted);  // SysError
    int number() const noexcept { return writer_.get(); }  // of the writing end; -1: no pipe
    void arm();   // before a clone; the number stays the same.  SysError
    // After the clone.  A child that has changed its user is continued as often as it is stopped,
    // and killed when it has not executed within kPatience seconds of that.
    void wait(pid_t pid, int pidfd, const Report& report, bool table_is_shared,
              bool changes_user) noexcept;
    bool gave_up() const noexcept { return gave_up_; }  // it was killed for that

    static constexpr int kPatience = 10;

  private:
    UniqueFd reader_, writer_;
    bool gave_up_ = false;
};

}  // namespace forkfd
