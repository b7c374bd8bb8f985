#include "bind/bindings.h"

#include <pybind11/stl.h>

#include <optional>

#include "bind/exchanging.h"
#include "bind/exit_tuple.h"
#include "bind/spawning.h"

namespace py = pybind11;
using forkfd::Exchange;
using State = Exchange::State;

namespace {

// The bytes of an object, borrowed for the time of a call.
class Borrowed {
  public:
    explicit Borrowed(const py::object& owner) {
        if (PyObject_GetBuffer(owner.ptr(), &view_, PyBUF_SIMPLE) != 0)
            throw py::error_already_set();
    }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;
    ~Borrowed() { PyBuffer_Release(&view_); }
    const char* data() const { return static_cast<const char*>(view_.buf); }
    std::size_t size() const { return static_cast<std::size_t>(view_.len); }

  private:
    Py_buffer view_;
};

void reap_killed(Exchange& exchange) {
    for (;;) {
        bool ended;
        {
            const py::gil_scoped_release release;
            ended = exchange.reap_ended();
        }
        if (ended) return;
        check_signals();
    }
}

void end_early(Exchange& exchange, pid_t pid, const py::object& kill, bool read_the_rest) {
    kill(pid, exchange.pidfd());
    if (read_the_rest) exchange.rest();
    exchange.close_pipes();
    reap_killed(exchange);
}

py::tuple run(const forkfd::SpawnPlan& plan, const std::vector<int>& sources,
              const py::object& data, std::optional<double> timeout,
              std::optional<std::size_t> limit, const py::object& kill) {
    const Borrowed input(data);
    const Deadline deadline(timeout);
    std::optional<Exchange> exchange;
    pid_t pid = 0;
    State state;
    try {
        {
            forkfd::Environment env = environment_of(plan);
            const py::gil_scoped_release release;  // once for all, where no signal arrives
            forkfd::SpawnResult child = forkfd::spawn(plan, std::move(env), sources);
            pid = child.pid;
            exchange.emplace(std::move(child.pipes), std::move(child.pidfd), input.data(),
                             input.size(), limit);
            state = exchange->run(deadline);
        }
        if (state == State::interrupted) {
            check_signals();
            state = run_to_the_end(*exchange, deadline);
        }
    } catch (...) {
        if (exchange) end_early(*exchange, pid, kill, false);
        throw;
    }
    if (state != State::ended) end_early(*exchange, pid, kill, state == State::timed_out);
    return py::make_tuple(static_cast<int>(state), exit_tuple(exchange->end()),
                          bytes_or_none(exchange->output(1)), bytes_or_none(exchange->output(2)));
}

}  // namespace

void bind_run(py::module_& m) {
    m.attr("RUN_ENDED") = static_cast<int>(State::ended);
    m.attr("RUN_TIMED_OUT") = static_cast<int>(State::timed_out);
    m.attr("RUN_TOO_LONG") = static_cast<int>(State::too_long);
    m.def("run", &run, py::arg("plan"), py::arg("sources"), py::arg("data"), py::arg("timeout"),
          py::arg("limit"), py::arg("kill"), py::pos_only(),
          "Start a child whose 0, 1 and 2 alone are pipes, exchange its input and output, and reap "
          "it; return (RUN_..., as of reap(), output to 1, to 2).  kill(pid, pidfd) is called "
          "before a child is reaped that has reached a limit, or is interrupted.");
}
