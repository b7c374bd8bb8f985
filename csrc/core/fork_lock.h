// The fork lock: a reader/writer lock between those who hand descriptors to children
// and those who make a descriptor inheritable for a moment.
//
// A spawn that lets inheritable descriptors through (close_others=False) holds it
// shared, so many run at once; code that clears FD_CLOEXEC for a moment holds it
// exclusively, so no such child is cloned meanwhile.  A strict spawn passes only what
// its map names and needs no lock.
#pragma once

#include <shared_mutex>

namespace forkfd {

// Never destroyed: threads may still spawn while the process exits.
inline std::shared_mutex& fork_lock() {
    static std::shared_mutex* const lock = new std::shared_mutex;
    return *lock;
}

}  // namespace forkfd
