#include "bind/exchanging.h"

namespace py = pybind11;
using forkfd::Exchange;
using State = Exchange::State;

void check_signals() {
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

State run_to_the_end(Exchange& exchange, const Deadline& deadline) {
    for (;;) {
        State state;
        {
            const py::gil_scoped_release release;
            state = exchange.run(deadline);
        }
        if (state != State::interrupted) return state;
        check_signals();
    }
}

py::object bytes_or_none(const forkfd::Output* output) {
    if (output == nullptr) return py::none();
    return py::bytes(output->data() == nullptr ? "" : output->data(), output->size());
}
