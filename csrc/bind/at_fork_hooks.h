// Python's handlers around a fork: the list of them, and what the interpreter's hooks call.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <optional>

#include "core/base/timing.h"

namespace forkfd::bind {

enum Phase { before, after_in_parent, after_in_child, n_phases };

// The id; a handler of a lower order is as if registered earlier.
int add_handlers(const std::array<std::optional<pybind11::object>, n_phases>& functions,
                 const pybind11::object& registration, int order);
// False: there is none of that id.
bool remove_handlers(int id);
// (registration, and for each phase its numbers), in the order of the list.
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
    // Throws what the handler raised, if one did.
    void rethrow() const;
    bool refused() const;
};

// calls, failures, nanoseconds in all, and of the longest
pybind11::tuple numbers(const Timing& timing);

}  // namespace forkfd::bind
