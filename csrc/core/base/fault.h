// Test-only: makes one Stage fail with a chosen errno, in the parent or in the child.
// One relaxed load where nothing is armed.
#pragma once

#include <atomic>

#include "core/base/error.h"

namespace forkfd::fault {

struct alignas(8) Armed {  // clang calls libatomic for what is aligned by less
    Stage stage = Stage::none;
    int err = 0;
};

inline std::atomic<Armed>& slot() noexcept {
    static_assert(std::atomic<Armed>::is_always_lock_free);
    static std::atomic<Armed> armed{Armed{}};
    return armed;
}

inline Armed armed() noexcept { return slot().load(std::memory_order_relaxed); }

// Throws if `stage` is armed; called where the parent is about to do it.
inline void point(Stage stage, const char* subject) {
    const Armed a = armed();
    if (a.stage == stage) throw_sys(stage, a.err, subject);
}

}  // namespace forkfd::fault
