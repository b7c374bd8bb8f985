// Python's at-fork handlers: their list, and the functions that the interpreter's hooks call.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <optional>

#include "core/base/timing.h"

namespace forkfd::bind {

enum Phase { before, after_in_parent, after_in_child, n_phases };

// Returns an id.  A lower order counts as registered earlier.
int add_handlers(const std::array<std::optional<pybind11::object>, n_phases>& functions,
                 const pybind11::object& registration, int order);
// False: no handler has that id.
bool remove_handlers(int id);
// (registration, and for each phase its timing), in the order of the list.
pybind11::list all_handlers();

// None, for os.register_at_fork().
pybind11::object run_before();
template <Phase phase>
pybind11::object run_after();

// Until its end, a `before` handler that raises in this thread's next fork refuses the fork.
class Refusable {
  public:
    Refusable();
    Refusable(const Refusable&) = delete;
    Refusable& operator=(const Refusable&) = delete;
    ~Refusable();
    // Throws the exception of the handler that refused, if one did.
    void rethrow() const;
    bool refused() const;
};

// (calls, failures, nanoseconds in all, nanoseconds of the longest)
pybind11::tuple numbers(const Timing& timing);

}  // namespace forkfd::bind
