#include "core/atfork/fd_section.h"

#include <fcntl.h>

#include <climits>
#include <string>

#include "core/atfork/atfork.h"
#include "core/base/raw_syscall.h"
#include "core/descriptors/descriptor.h"

namespace forkfd {

namespace {

FdSection* sections = nullptr;  // all that have begun, the latest first; guarded by NoForkNow

std::string named(int number) { return "descriptor " + std::to_string(number); }

}  // namespace

FdSection::FdSection(const std::vector<std::pair<int, int>>& redirect, Where where)
    : where_(where) {
    std::vector<int> numbers;
    for (const auto& [number, source] : redirect) numbers.push_back(number);
    const NoForkNow still;
    std::vector<Change> changes;
    for (const auto& [number, source] : redirect) {
        demand_below_limit(number);
        Change c = {number, duplicate_beside(source, numbers), {}, false};
        const int flags = ::fcntl(number, F_GETFD);
        if (flags >= 0) c.original = duplicate_beside(number, numbers);
        c.cloexec = flags > 0;
        changes.push_back(std::move(c));
    }
    begin(std::move(changes));
}

FdSection::FdSection(const std::vector<int>& inheritable) : where_(Where::both) {
    const NoForkNow still;
    std::vector<Change> changes;
    for (const int number : inheritable)
        changes.push_back({number, {}, {}, forkfd::cloexec(number)});
    begin(std::move(changes));
}

// Called while no fork is under way.
void FdSection::begin(std::vector<Change> changes) {
    // Runs before all other handlers: they find the descriptors unchanged.
    static const int registered =
        add_native({nullptr, nullptr, &FdSection::all_in_child, nullptr}, INT_MIN);
    static_cast<void>(registered);
    for (std::size_t i = 0; where_ != Where::child && i < changes.size(); ++i) {
        const int err = apply(changes[i]);
        if (err == 0) continue;
        for (std::size_t done = i; done > 0; --done) undo(changes[done - 1]);
        throw_errno(err, named(changes[i].number) + ": change temporarily");
    }
    applied_ = where_ != Where::child;
    changes_ = std::move(changes);
    next_ = sections;
    sections = this;
}

int FdSection::apply(const Change& c) noexcept {
    if (c.wanted) return replace(c.number, c.wanted.get(), false);
    return c.cloexec ? static_cast<int>(-raw::call(SYS_fcntl, c.number, F_SETFD, 0)) : 0;
}

int FdSection::undo(const Change& c) noexcept {
    if (!c.wanted) {  // the number may have been closed meanwhile
        if (c.cloexec) raw::call(SYS_fcntl, c.number, F_SETFD, FD_CLOEXEC);
        return 0;
    }
    if (c.original) return replace(c.number, c.original.get(), c.cloexec);
    raw::call(SYS_close, c.number);
    return 0;
}

// Returns 0, or the first error and its number.
int FdSection::undo_all(int* number) noexcept {
    int first = 0;
    if (!std::exchange(applied_, false)) return 0;
    for (auto c = changes_.rbegin(); c != changes_.rend(); ++c) {
        const int err = undo(*c);
        if (err == 0 || first != 0) continue;
        first = err;
        *number = c->number;
    }
    return first;
}

void FdSection::in_child() noexcept {
    int unused;
    if (owner_ != std::this_thread::get_id()) {
        // A section of a thread that the child does not have: nothing else ends it.
        undo_all(&unused);
        for (Change& c : changes_) {
            c.wanted.reset();
            c.original.reset();
        }
        ended_ = true;
    } else if (where_ == Where::parent) {
        undo_all(&unused);
    } else if (where_ == Where::child && !applied_) {
        for (const Change& c : changes_)
            if (const int err = apply(c); err != 0) child_error_ = err;
        applied_ = true;
    }
}

void FdSection::all_in_child(void*) noexcept {
    // The latest first: where two change one number, the original is restored last.
    FdSection** at = &sections;
    while (FdSection* const section = *at) {
        section->in_child();
        if (section->ended_) *at = section->next_;
        else at = &section->next_;
    }
}

void FdSection::end() {
    int number = -1, err = 0;
    {
        const NoForkNow still;
        if (std::exchange(ended_, true)) return;
        for (FdSection** at = &sections; *at != nullptr; at = &(*at)->next_)
            if (*at == this) {
                *at = next_;
                break;
            }
        err = undo_all(&number);
        changes_.clear();
    }
    if (child_error_ != 0) throw_errno(child_error_, "redirect descriptors in the child");
    if (err != 0) throw_errno(err, named(number) + ": restore");
}

FdSection::~FdSection() {
    try {
        end();
    } catch (const std::exception&) {  // a caller that wants the error calls end()
    }
}

}  // namespace forkfd
