#include "bind/slot_snapshot.h"

#include <iterator>

#include "bind/plain_call.h"

namespace py = pybind11;

namespace {

PyTypeObject* snapshot_type = nullptr;

PyStructSequence_Field snapshot_fields[] = {
    {"requests", "number of answered requests"},
    {"errors", "number of those that failed"},
    {"in_flight", "number of requests being answered"},
    {"beat_ns", "time of the last heartbeat, in ns of CLOCK_MONOTONIC; 0: never"},
    {"deadline_ns", "time by which the work at hand is done; 0: no deadline"},
    {"ready_ns", "time at which the worker became ready; 0: it is not"},
    {"worker", "worker_id of the slot; 0: free"},
    {"generation", "generation of the worker"},
    {nullptr, nullptr},
};
PyStructSequence_Desc snapshot_description = {
    "pyforkfd._core.SlotSnapshot",
    "The numbers of a slot.\n\nEach was read at once; together they may be a moment apart.",
    snapshot_fields, 8};

}  // namespace

void add_slot_snapshot_type(py::module_& m) {
    snapshot_type = PyStructSequence_NewType(&snapshot_description);
    if (snapshot_type == nullptr) throw py::error_already_set();
    m.attr("SlotSnapshot") = py::handle(reinterpret_cast<PyObject*>(snapshot_type));
}

py::object slot_snapshot(const forkfd::PageSlot& slot) {
    const forkfd::Word* const words[] = {
        &slot.requests,    &slot.errors,   &slot.in_flight, &slot.beat_ns,
        &slot.deadline_ns, &slot.ready_ns, &slot.worker,    &slot.generation};
    py::object made = steal(PyStructSequence_New(snapshot_type));
    for (std::size_t i = 0; i < std::size(words); ++i) {
        const std::uint64_t word = words[i]->load(std::memory_order_relaxed);
        PyStructSequence_SetItem(made.ptr(), static_cast<Py_ssize_t>(i),
                                 steal(PyLong_FromUnsignedLongLong(word)).release().ptr());
    }
    return made;
}
