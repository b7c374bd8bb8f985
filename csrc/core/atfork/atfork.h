// What runs for every fork(2) of this process that goes through libc's fork(): Python's,
// C libraries', with the GIL and without.  Bound to pthread_atfork(3) once.
// vfork, posix_spawn and our own spawn run nothing of it.
#pragma once

namespace forkfd {

// Each function may be null.  They run on the thread that forks, at a moment when any lock
// may be held and any signal handler interrupted: system calls and plain memory only; no
// GIL, no allocation, no lock.  One that forks runs all of them again.
struct NativeHandlers {
    void (*before)(void*) noexcept;     // last in, first out
    void (*in_parent)(void*) noexcept;  // first in, first out; also when the fork has failed
    void (*in_child)(void*) noexcept;   // first in, first out
    void* context;
};

// Returns an id.  A lower order is as if added earlier.  Waits while another thread forks:
// for native handlers only, so the GIL may be held.  Throws std::bad_alloc and
// std::system_error (ENOMEM of pthread_atfork).
int add_native(const NativeHandlers& handlers, int order = 0);

// Once it returns, none of its functions runs or will run, in this process.  From within
// one of them: none will run after this one.  An unknown id is ignored.
void remove_native(int id);

// Around a fork of ours that is not libc's: the handlers run as they do for libc's.
// in_parent also where the fork has failed.
void run_native_before() noexcept;
void run_native_in_parent() noexcept;
void run_native_in_child() noexcept;

// While it lives no other thread is between its `before` and its `in_parent`, so what is
// changed meanwhile no child sees half done.  All signals of the thread are blocked, so
// none of its handlers forks either.  For a few system calls: others may wait with the GIL
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
