// SlotSnapshot, a struct sequence: a supervisor makes one for every worker five times a second.
#pragma once

#include <pybind11/pybind11.h>

#include "core/page/shared_page.h"

void add_slot_snapshot_type(pybind11::module_& m);

pybind11::object slot_snapshot(const forkfd::PageSlot& slot);
