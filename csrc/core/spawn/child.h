// The child's side of a spawn, between clone and exec.
#pragma once

namespace forkfd {
struct ChildArgs;
}

namespace forkfd::child {

// The entry point on the child's own stack; `args` is a ChildArgs.  Never returns.
[[noreturn]] void run(void* args) noexcept;

// The same stages without the exec, in the calling process: a cloned worker that continues with
// its own memory.  Returns when all are done; a failure is reported and ends the process.
void apply(const ChildArgs& args) noexcept;

}  // namespace forkfd::child
