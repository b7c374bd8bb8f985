#include "bind/slot_type.h"

#include <new>

#include "bind/plain_call.h"
#include "bind/slot_snapshot.h"

namespace py = pybind11;
using forkfd::PageMapping;
using forkfd::PageSlot;

namespace {

struct Slot {
    PyObject_HEAD
    PageSlot* at;
    std::shared_ptr<PageMapping> mapping;  // lives as long as any slot
};

PyTypeObject* slot_type = nullptr;

PageSlot& slot_of(PyObject* self) { return *reinterpret_cast<Slot*>(self)->at; }

PyObject* beat(PyObject* self, PyObject*) {
    slot_of(self).beat();
    Py_RETURN_NONE;
}

PyObject* begin(PyObject* self, PyObject*) {
    slot_of(self).begin();
    Py_RETURN_NONE;
}

PyObject* add(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
    return guarded([&]() -> py::object {
        std::uint64_t values[] = {1, 0};
        named_numbers("add", {"requests", "errors"}, values, args, count, keywords);
        slot_of(self).add(values[0], values[1]);
        return py::none();
    });
}

PyObject* end(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
    return guarded([&]() -> py::object {
        std::uint64_t values[] = {0};
        named_numbers("end", {"errors"}, values, args, count, keywords);
        slot_of(self).end(values[0]);
        return py::none();
    });
}

PyObject* claim(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
    return guarded([&]() -> py::object {
        if (count != 0) throw py::type_error("claim: worker, generation: keyword-only");
        std::uint64_t values[] = {0, 0};
        named_numbers("claim", {"worker", "generation"}, values, args, count, keywords);
        if (values[0] == 0)
            throw py::value_error("claim: worker: must not be 0, which means a free slot");
        slot_of(self).claim(values[0], values[1]);
        return py::none();
    });
}

PyObject* set_ready(PyObject* self, PyObject* ready) {
    return guarded([&]() -> py::object {
        const int yes = PyObject_IsTrue(ready);
        if (yes < 0) throw py::error_already_set();
        slot_of(self).set_ready(yes != 0);
        return py::none();
    });
}

PyObject* set_deadline(PyObject* self, PyObject* ns) {
    return guarded([&]() -> py::object {
        slot_of(self).deadline_ns.store(ns == Py_None ? 0 : natural_of(ns),
                                        std::memory_order_relaxed);
        return py::none();
    });
}

PyObject* clear(PyObject* self, PyObject*) {
    slot_of(self).claim(0, 0);
    Py_RETURN_NONE;
}

PyObject* snapshot(PyObject* self, PyObject*) {
    return guarded([&] { return slot_snapshot(slot_of(self)); });
}

void forget(PyObject* self) {
    PyTypeObject* const type = Py_TYPE(self);
    reinterpret_cast<Slot*>(self)->mapping.~shared_ptr();
    type->tp_free(self);
    Py_DECREF(type);
}

PyMethodDef methods[] = {
    {"beat", beat, METH_NOARGS,
     "beat($self, /)\n--\n\nRecord a heartbeat: the time now.  No system call."},
    {"add", fast(add), METH_FASTCALL | METH_KEYWORDS,
     "add($self, /, requests=1, errors=0)\n--\n\nCount answered requests, and those of them "
     "that failed."},
    {"begin", begin, METH_NOARGS, "begin($self, /)\n--\n\nCount one request more in flight."},
    {"end", fast(end), METH_FASTCALL | METH_KEYWORDS,
     "end($self, /, errors=0)\n--\n\nCount one request less in flight, and as answered."},
    {"set_ready", set_ready, METH_O,
     "set_ready($self, ready, /)\n--\n\nRecord whether the worker is ready."},
    {"set_deadline", set_deadline, METH_O,
     "set_deadline($self, ns, /)\n--\n\nRecord the time by which the work at hand is done, in "
     "ns of CLOCK_MONOTONIC (time.monotonic_ns()); None: no deadline."},
    {"claim", fast(claim), METH_FASTCALL | METH_KEYWORDS,
     "claim($self, /, *, worker, generation)\n--\n\nAssign the slot to a worker; all else is 0."},
    {"clear", clear, METH_NOARGS, "clear($self, /)\n--\n\nFree the slot."},
    {"snapshot", snapshot, METH_NOARGS, "snapshot($self, /)\n--\n\nRead the slot."},
    {nullptr, nullptr, 0, nullptr},
};

constexpr char kSlotDoc[] =
    "One worker's part of a SharedPage: a cache line that no other worker writes to.\n\n"
    "beat, add, begin, end, set_ready and set_deadline are the worker's, claim and clear the\n"
    "supervisor's, while no worker has the slot.  Any thread may call any of them at any time;\n"
    "none takes a lock, waits or makes a system call.  A child of fork has the slot too, and\n"
    "must not write to it.  The slot holds the page's memory, also when the page is closed.";

PyType_Slot type_slots[] = {
    {Py_tp_doc, const_cast<char*>(kSlotDoc)},
    {Py_tp_dealloc, reinterpret_cast<void*>(forget)},
    {Py_tp_methods, methods},
    {0, nullptr},
};
PyType_Spec type_spec = {"pyforkfd._core.Slot", sizeof(Slot), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, type_slots};

}  // namespace

// Never freed, as the module is.
void add_slot_type(py::module_& m) {
    slot_type = reinterpret_cast<PyTypeObject*>(steal(PyType_FromSpec(&type_spec)).release().ptr());
    m.attr("Slot") = py::handle(reinterpret_cast<PyObject*>(slot_type));
}

py::object make_slot(const std::shared_ptr<PageMapping>& mapping, std::uint32_t index) {
    if (index >= mapping->size())
        throw py::index_error("slot " + std::to_string(index) + " of " +
                              std::to_string(mapping->size()));
    py::object made = steal(slot_type->tp_alloc(slot_type, 0));
    Slot* const slot = reinterpret_cast<Slot*>(made.ptr());
    slot->at = &mapping->slot(index);
    new (&slot->mapping) std::shared_ptr<PageMapping>(mapping);
    return made;
}
