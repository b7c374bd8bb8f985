// Slot, a type of CPython's own: a call through pybind11 would take longer than the heartbeat.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>

#include "core/page/shared_page.h"

void add_slot_type(pybind11::module_& m);

// Makes a Slot, which holds the mapping; IndexError.
pybind11::object make_slot(const std::shared_ptr<forkfd::PageMapping>& mapping,
                           std::uint32_t index);
