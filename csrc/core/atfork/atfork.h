// Native handlers of every fork(2) through libc's fork(): Python's, those of C libraries, with
// and without the GIL.  Bound to pthread_atfork(3) once.  vfork, posix_spawn and our own spawn
// run none of them.
#pragma once

namespace forkfd {

// Each function may be null.  It runs on the forking thread, when any lock may be held and any
// code interrupted: system calls and plain memory only; no GIL, no allocation, no lock.  A
// function that forks runs all of them again.
struct NativeHandlers {
    void (*before)(void*) noexcept;     // last in, first out
    void (*in_parent)(void*) noexcept;  // first in, first out; also after a failed fork
    void (*in_child)(void*) noexcept;   // first in, first out
    void* context;
};

// Adds handlers and returns their id.  A lower order counts as added earlier.  Waits while
// another thread forks: for native handlers only, so the GIL may be held.  Throws
// std::bad_alloc and std::system_error (ENOMEM of pthread_atfork).
int add_native(const NativeHandlers& handlers, int order = 0);

// Removes handlers: once it returns, none of their functions runs or will run in this process.
// Called from one of them: none will run after that one.  An unknown id is ignored.
void remove_native(int id);

// Run the handlers around a fork of ours that bypasses libc's fork().  run_native_in_parent()
// also after a failed fork.
void run_native_before() noexcept;
void run_native_in_parent() noexcept;
void run_native_in_child() noexcept;

// While it lives, no other thread is between its `before` and its `in_parent` handlers, so no
// child sees a change half done.  All signals of the thread are blocked, so none of its signal
// handlers forks either.  For a few system calls only: other threads may wait with the GIL
// held.
class NoForkNow {
  public:
    NoForkNow() noexcept;
    NoForkNow(const NoForkNow&) = delete;
    NoForkNow& operator=(const NoForkNow&) = delete;
    ~NoForkNow();

  private:
    unsigned long long mask_;
};

}  // namespace forkfd
