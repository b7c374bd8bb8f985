// All EpollSets of the process, for the at-fork handlers.
#pragma once

#include "core/epoll/epoll_set.h"

namespace forkfd {

// The list changes only while no fork is under way (NoForkNow).
struct LiveSets {
    EpollSet* first = nullptr;
    int depth = 0;  // a handler may fork within a fork

    LiveSets();
    void before() noexcept;
    void in_parent() noexcept;
    void in_child() noexcept;
    void insert(EpollSet* s);
    void erase(EpollSet* s);
};

LiveSets& live_sets();

}  // namespace forkfd
