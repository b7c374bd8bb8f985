// Lines of FORKFD_DEBUG=fork=1 about each fork(2) of this process, and the count of forks.
#pragma once

namespace forkfd::fork_trace {

// Called around every fork; they follow the rules of trace.h.
void before() noexcept;
void in_parent() noexcept;
void in_child() noexcept;

// Adds them to the native handlers (atfork.h), once: forks by C libraries are traced too.
void watch_forks();  // std::system_error

}  // namespace forkfd::fork_trace
