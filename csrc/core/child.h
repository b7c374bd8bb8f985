#pragma once

namespace forkfd::child {

// Entry point on the child's own stack; `args` is a ChildArgs.  Never returns.
[[noreturn]] void run(void* args) noexcept;

}  // namespace forkfd::child
