// Descriptors that are something else for a moment: in this process, in the children that
// this thread forks meanwhile, or in both; never in those that other threads fork.
//
// A child gets the whole table of its parent, whoever has just changed it.  So each section
// keeps, as plain data, how to undo itself, and the native handler of fork() undoes in the
// child those of other threads.  A section begins and ends where no fork is under way: it
// is there wholly or not at all.  vfork and posix_spawn run no handler: who uses those is
// kept out by the fork lock, or not at all.
#pragma once

#include <thread>
#include <utility>
#include <vector>

#include "core/base/unique_fd.h"

namespace forkfd {

class FdSection {
  public:
    enum class Where { both, parent, child };

    // What is at each number becomes what is at the second one, as by dup2: all at once, so
    // numbers may be swapped.  Both may be changed or closed meanwhile: the section has
    // duplicates.  Throws std::system_error; then nothing has changed.
    FdSection(const std::vector<std::pair<int, int>>& redirect, Where where);
    // Clears FD_CLOEXEC where it is set.
    explicit FdSection(const std::vector<int>& inheritable);
    FdSection(const FdSection&) = delete;
    FdSection& operator=(const FdSection&) = delete;
    ~FdSection();

    // Everything as it was: closed numbers and close-on-exec marks too.  Also from another
    // thread.  Throws the first error (somebody closed our duplicates), when all was tried.
    void end();

  private:
    struct Change {
        int number;
        UniqueFd wanted;    // none: the mark is cleared, and nothing else
        UniqueFd original;  // none: nothing was there
        bool cloexec;       // of what was there
    };
    void begin(std::vector<Change> changes);
    int apply(const Change& change) noexcept;
    int undo(const Change& change) noexcept;
    int undo_all(int* number) noexcept;
    void in_child() noexcept;
    static void all_in_child(void*) noexcept;

    std::vector<Change> changes_;
    const Where where_;
    const std::thread::id owner_ = std::this_thread::get_id();
    bool applied_ = false;
    int child_error_ = 0;  // of a change in the child; end() tells it there
    bool ended_ = false;
    FdSection* next_ = nullptr;
};

}  // namespace forkfd
