// Temporary changes of descriptors: in this process, in the children that this thread forks
// meanwhile, or in both; never in children of other threads.
//
// A child gets the whole table of its parent, with the changes of every thread.  So each section
// holds, as plain data, how to undo itself, and the native handler of fork() undoes in the child
// the sections of other threads.  A section begins and ends while no fork is under way: a child
// has it wholly or not at all.  vfork and posix_spawn run no handler: only the fork lock excludes
// their callers, if they take it.
#pragma once

#include <thread>
#include <utility>
#include <vector>

#include "core/base/unique_fd.h"

namespace forkfd {

class FdSection {
  public:
    enum class Where { both, parent, child };

    // Makes each first number a duplicate of the second, as dup2 does: all at once, so numbers
    // may be swapped.  Both may be changed or closed meanwhile: the section has duplicates.
    // Throws std::system_error; then nothing has changed.
    FdSection(const std::vector<std::pair<int, int>>& redirect, Where where);
    // Clears FD_CLOEXEC where it is set.
    explicit FdSection(const std::vector<int>& inheritable);
    FdSection(const FdSection&) = delete;
    FdSection& operator=(const FdSection&) = delete;
    ~FdSection();

    // Restores everything, closed numbers and close-on-exec marks too.  Any thread may call it.
    // Tries all, then throws the first error (the section's duplicates were closed).
    void end();

  private:
    struct Change {
        int number;
        UniqueFd wanted;    // empty: only the mark is cleared
        UniqueFd original;  // empty: the number was closed
        bool cloexec;       // of the original
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
    int child_error_ = 0;  // of a change in the child, where end() throws it
    bool ended_ = false;
    FdSection* next_ = nullptr;
};

}  // namespace forkfd
