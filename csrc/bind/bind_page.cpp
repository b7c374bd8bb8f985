#include "bind/bindings.h"

#include <memory>

#include "bind/slot_snapshot.h"
#include "bind/slot_type.h"
#include "core/page/shared_page.h"

namespace py = pybind11;
using forkfd::PageMapping;

void bind_page(py::module_& m) {
    add_slot_snapshot_type(m);
    add_slot_type(m);
    m.def("create_page", [](std::uint32_t slots) { return forkfd::create_page(slots).release(); },
          py::arg("slots"), py::pos_only());
    py::class_<PageMapping, std::shared_ptr<PageMapping>>(m, "PageMapping")
        .def(py::init<int>(), py::arg("fd"), py::pos_only())
        .def("__len__", &PageMapping::size)
        .def("slot", &make_slot, py::arg("index"), py::pos_only())
        .def("snapshots", [](const PageMapping& self) {
            py::list all(self.size());
            for (std::uint32_t i = 0; i < self.size(); ++i) all[i] = slot_snapshot(self.slot(i));
            return all;
        })
        .def_property("generation", [](const PageMapping& self) {
            return self.header().generation.load(std::memory_order_relaxed);
        }, [](const PageMapping& self, std::uint64_t value) {
            self.header().generation.store(value, std::memory_order_relaxed);
        });
}
