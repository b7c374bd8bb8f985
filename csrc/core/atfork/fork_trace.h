// What FORKFD_DEBUG=fork=1 says of each fork(2) of this process, and its counting.
#pragma once

namespace forkfd::fork_trace {

// Called around every fork; they keep to the rules of trace.h.
void before() noexcept;
void in_parent() noexcept;
void in_child() noexcept;

// Adds them to the native handlers (atfork.h), once: forks by C libraries are seen too.
void watch_forks();  // std::system_error

}  // namespace forkfd::fork_trace
