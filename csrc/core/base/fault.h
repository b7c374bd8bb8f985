// Test-only: one Stage that fails with a chosen errno, in the parent or in the child.
// Costs one relaxed load where no fault is armed.
#pragma once

#include <atomic>

#include "core/base/error.h"

namespace forkfd::fault {

struct alignas(8) Armed {  // with less alignment clang calls libatomic
    Stage stage = Stage::none;
    int err = 0;
};

inline std::atomic<Armed>& slot() noexcept {
    static_assert(std::atomic<Armed>::is_always_lock_free);
    static std::atomic<Armed> armed{Armed{}};
    return armed;
}

inline Armed armed() noexcept { return slot().load(std::memory_order_relaxed); }

// Throw if `stage` is armed; called before the parent performs the stage.
inline void point(Stage stage, const char* subject) {
    const Armed a = armed();
    if (a.stage == stage) throw_sys(stage, a.err, subject);
}

}  // namespace forkfd::fault
