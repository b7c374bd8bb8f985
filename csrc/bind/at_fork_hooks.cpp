#include "bind/at_fork_hooks.h"

#include <array>
#include <mutex>
#include <new>
#include <optional>
#include <pybind11/stl.h>

#include "bind/timing_pool.h"
#include "core/atfork/at_fork_list.h"
#include "core/base/fork_page.h"

namespace py = pybind11;
using forkfd::Timing;
using namespace forkfd::bind;  // the phases

namespace {

using Pool = forkfd::bind::TimingPool<n_phases>;

struct PyHandlers {
    PyHandlers();
    PyHandlers(const PyHandlers&) = delete;
    PyHandlers& operator=(const PyHandlers&) = delete;
    ~PyHandlers();
    std::array<py::object, n_phases> functions;  // null: none
    py::object registration;                     // the object for sys.unraisablehook
    const Pool::Place timings;
};
using List = forkfd::AtForkList<std::unique_ptr<PyHandlers>>;

// No Python code runs while `mutex` is held.  Recursive, since a handler that could not be added
// is destroyed under it.
struct Handlers {
    std::recursive_mutex mutex;
    List list;
    Pool timings;

    template <class Work>
    auto guarded(Work work) {
        const std::lock_guard<std::recursive_mutex> guard(mutex);
        return work();
    }
    std::shared_ptr<const List::Entries> entries() {
        return guarded([this] { return list.entries(); });
    }
    List::Round begin() {
        return guarded([this] { return list.begin(); });
    }
    // Dropping entries may run Python code, after `mutex` is unlocked.
    void end() {
        const auto dropped = guarded([this] { return list.end(); });
    }
    // Without the mutex: the child has no other thread, and one of the parent may hold it.
    void end_in_child(std::size_t left) {
        const auto dropped = list.end_but(static_cast<int>(left));
    }
};

FORKFD_IN_CHILD Handlers& handlers() {
    alignas(Handlers) FORKFD_FORK_PAGE static unsigned char place[sizeof(Handlers)];
    static Handlers* const made = new (place) Handlers;  // not destroyed at exit
    return *made;
}

PyHandlers::PyHandlers()
    : timings(handlers().guarded([] { return handlers().timings.take(); })) {}
PyHandlers::~PyHandlers() {
    handlers().guarded([this] { handlers().timings.give_back(timings); });
}

// Forks under way on this thread: more than one where a handler forks.
thread_local std::vector<List::Round> rounds;
thread_local bool refusable = false;
thread_local std::optional<py::error_already_set> refusal;

// Calls all handlers from C: each costs a call, a clock reading and four additions.
class Caller {
  public:
    Caller(Phase phase, bool keep_error) : phase_(phase), keep_error_(keep_error) {}

    // False: the handler raised, and the error is left for the caller.
    FORKFD_IN_CHILD bool operator()(List::Entry& entry) {
        PyHandlers& h = *entry.handler;
        const py::object& function = h.functions[phase_];
        if (!function) return true;
        PyObject* const result = PyObject_CallNoArgs(function.ptr());
        const auto now = Timing::now();
        h.timings[phase_]->add(now - last_, result == nullptr);
        last_ = now;
        if (result != nullptr) {
            Py_DECREF(result);
            return true;
        }
        if (keep_error_) return false;
        PyErr_WriteUnraisable(h.registration.ptr());
        return true;
    }

  private:
    const Phase phase_;
    const bool keep_error_;
    std::chrono::nanoseconds last_ = Timing::now();
};

}  // namespace

namespace forkfd::bind {

py::object run_before() {
    const bool keep_error = std::exchange(refusable, false);
    List::Round round = handlers().begin();
    if (!round.before(Caller(before, keep_error))) refusal.emplace();
    rounds.push_back(round);
    return py::none();
}

template <Phase phase>
FORKFD_IN_CHILD py::object run_after() {
    List::Round round;
    if (rounds.empty()) {  // no `before` hook has run: a fork by an embedder
        round = handlers().begin();
        round.reach_all();
    } else {
        round = rounds.back();
        rounds.pop_back();
    }
    round.after(Caller(phase, false));
    if (phase == after_in_child) handlers().end_in_child(rounds.size());
    else handlers().end();
    return py::none();
}
template py::object run_after<after_in_parent>();
template py::object run_after<after_in_child>();

int add_handlers(const std::array<std::optional<py::object>, n_phases>& functions,
                 const py::object& registration, int order) {
    auto made = std::make_unique<PyHandlers>();
    for (int i = 0; i < n_phases; ++i)
        if (functions[i]) made->functions[i] = *functions[i];
    made->registration = registration;
    const auto old = handlers().entries();  // destroyed after the lock, if at all
    return handlers().guarded([&] { return handlers().list.add(std::move(made), order); });
}

bool remove_handlers(int id) {
    const auto old = handlers().entries();
    return handlers().guarded([id] { return handlers().list.remove(id); });
}

py::list all_handlers() {
    py::list found;
    const auto entries = handlers().entries();
    for (const auto& entry : *entries) {
        const PyHandlers& h = *entry->handler;
        found.append(py::make_tuple(h.registration, numbers(*h.timings[before]),
                                    numbers(*h.timings[after_in_parent]),
                                    numbers(*h.timings[after_in_child])));
    }
    return found;
}

py::tuple numbers(const Timing& t) {
    return py::make_tuple(t.calls.load(), t.failures.load(), t.total_ns.load(),
                          t.longest_ns.load());
}

Refusable::Refusable() {
    refusable = true;
    refusal.reset();
}
// Writes only if needed: after a fork each page that is written costs a fault.
FORKFD_IN_CHILD Refusable::~Refusable() {
    if (refusable) refusable = false;
    if (refusal) refusal.reset();
}
bool Refusable::refused() const { return refusal.has_value(); }
void Refusable::rethrow() const {
    if (refusal) throw py::error_already_set(*refusal);
}

}  // namespace forkfd::bind

