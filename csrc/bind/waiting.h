// Waiting for a descriptor as Python waits: the GIL is released, signal handlers run in between
// (so Ctrl-C ends it), one deadline covers all of it.
#pragma once

#include "core/base/deadline.h"

using forkfd::Deadline;

// Returns true when it is ready (`events` as for poll(2)), false when the time is up.
bool wait_ready(int fd, short events, const Deadline& deadline);
