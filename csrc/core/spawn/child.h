#pragma once

namespace forkfd {
struct ChildArgs;
}

namespace forkfd::child {

// Entry point on the child's own stack; `args` is a ChildArgs.  Never returns.
[[noreturn]] void run(void* args) noexcept;

// The same stages but the exec, for the calling process: a worker that was cloned and goes on
// with what it is.  Returns when all are done; a failure is reported and ends the process.
void apply(const ChildArgs& args) noexcept;

}  // namespace forkfd::child
