#include "bind/bindings.h"

#include "core/lines/line_records.h"

namespace py = pybind11;

// Captured output as log records.
void bind_lines(py::module_& m) {
    m.def(
        "record_lines",
        [](const py::bytes& data, const py::bytes& part, std::uint64_t length,
           const py::bytes& head, std::size_t max_line) {
        const std::string_view bytes = data, beginning = head;
        forkfd::UnfinishedLine unfinished{part, length};
        forkfd::LineRecords records;
        {
            const py::gil_scoped_release release;
            records = forkfd::record_lines(bytes, unfinished, beginning, max_line);
        }
        return py::make_tuple(py::bytes(records.data), records.count, records.cut, records.is_plain,
                              py::bytes(unfinished.part), unfinished.length);
        },
        py::arg("data"), py::arg("part"), py::arg("length"), py::arg("head"), py::arg("max_line"),
        py::pos_only(),
        "Make a log record of each whole line.\n\n"
        "Args:\n"
        "    data: what was read.\n"
        "    part: the retained beginning of a line whose newline is still to come.\n"
        "    length: bytes of all that was read of that line.\n"
        "    head: the beginning of every record, up to its message: JSON.\n"
        "    max_line: bytes of a line that are retained.\n\n"
        "Returns:\n"
        "    (records, each with its newline; their count; how many were cut; whether every\n"
        "    message is printable ASCII without escapes, and none was cut; part and length for\n"
        "    the next call).");
}
