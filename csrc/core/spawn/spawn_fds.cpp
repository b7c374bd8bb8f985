#include "core/spawn/spawn_fds.h"

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <map>

#include "core/base/fault.h"

namespace forkfd {

namespace {

using Kind = FdAction::Kind;

std::string arrow(int source, int target) {
    return std::to_string(source) + " -> child's " + std::to_string(target);
}

void demand_open(int fd, const std::string& subject) {
    fault::point(Stage::descriptor_source, subject.c_str());
    if (::fcntl(fd, F_GETFD) < 0) throw_sys(Stage::descriptor_source, errno, subject);
}

// The kernel's error for a number above the limit is EBADF, which misleads.
void demand_below_limit(int target) {
    rlimit limit;
    if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && static_cast<rlim_t>(target) >= limit.rlim_cur)
        throw_sys(Stage::descriptor_source, EMFILE,
                  "child's " + std::to_string(target) + " is not below RLIMIT_NOFILE " +
                      std::to_string(limit.rlim_cur));
}

}  // namespace

int SpawnFds::open_null() {
    if (null_fd_ >= 0) return null_fd_;
    fault::point(Stage::open_null, "/dev/null");
    UniqueFd fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
    if (!fd) throw_sys(Stage::open_null, errno, "/dev/null");
    null_fd_ = fd.get();
    child_ends_.push_back(std::move(fd));
    return null_fd_;
}

int SpawnFds::open_pipe(const FdAction& action) {
    const std::string subject = "for child's " + std::to_string(action.target);
    fault::point(Stage::make_pipe, subject.c_str());
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) throw_sys(Stage::make_pipe, errno, subject);
    UniqueFd reader(ends[0]), writer(ends[1]);
    UniqueFd& childs = action.kind == Kind::pipe_to_child ? reader : writer;
    UniqueFd& ours = action.kind == Kind::pipe_to_child ? writer : reader;
    const int number = childs.get();
    child_ends_.push_back(std::move(childs));
    our_ends_.push_back({action.target, std::move(ours)});
    return number;
}

int SpawnFds::source_for(const FdAction& action, int planned) {
    switch (action.kind) {
        case Kind::descriptor:
            demand_open(planned, arrow(planned, action.target));
            return planned;
        case Kind::inherit_if_open:
            return ::fcntl(action.target, F_GETFD) < 0 ? -1 : action.target;
        case Kind::as_exec_leaves: {
            const int flags = ::fcntl(action.target, F_GETFD);
            return flags < 0 || (flags & FD_CLOEXEC) != 0 ? -1 : action.target;
        }
        case Kind::null_device: return open_null();
        case Kind::pipe_to_child:
        case Kind::pipe_from_child: return open_pipe(action);
        default: return -1;
    }
}

// A number that is its own source may be above the limit: it was opened before the limit was set.
int SpawnFds::highest_made() const {
    int highest = 2;
    for (const FdWant& w : wants_)
        if (w.target != w.source) highest = std::max(highest, w.target);
    for (const ChildOpen& o : opens_) highest = std::max(highest, o.target);
    for (const ChildCopy& c : copies_) highest = std::max(highest, c.target);
    return highest;
}

void SpawnFds::add_file_actions(const std::vector<FileAction>& actions) {
    for (const FileAction& action : actions) {
        FdStep step = {action.kind, action.target, action.source};
        if (action.kind == FdStep::Kind::open)
            step.file = {action.path.c_str(), action.flags, action.mode};
        kept_floor_ = std::max(kept_floor_, action.source);
        if (action.kind != FdStep::Kind::close_from)
            kept_floor_ = std::max(kept_floor_, action.target);
        steps_.push_back(step);
    }
}

// Between the targets, below the hole.
void SpawnFds::add_gaps() {
    unsigned from = 0;
    for (const int target : targets_) {
        const auto t = static_cast<unsigned>(target);
        if (t >= hole_first_) break;
        if (t > from) gaps_.push_back({from, t - 1});
        from = t + 1;
    }
    if (from < hole_first_) gaps_.push_back({from, hole_first_ - 1});
}

SpawnFds::SpawnFds(const SpawnPlan& plan, const std::vector<int>& sources,
                   const std::vector<int>& used_later) {
    std::map<int, int> source_of;
    std::vector<const FdAction*> shared;
    std::size_t next = 0;
    for (const FdAction& action : plan.fds) {
        const int planned = action.kind == Kind::descriptor && !sources.empty()
                                ? sources.at(next++) : action.source;
        if (action.kind == Kind::same_as) {
            shared.push_back(&action);
        } else if (action.kind == Kind::open) {
            opens_.push_back({action.target, {action.path.c_str(), action.flags, action.mode}});
        } else if (const int source = source_for(action, planned); source >= 0) {
            wants_.push_back({action.target, source});
            source_of.emplace(action.target, source);
        }
    }
    for (const FdAction* action : shared) {
        const auto found = source_of.find(action->source);
        if (found != source_of.end()) wants_.push_back({action->target, found->second});
        else copies_.push_back({action->target, action->source});
    }
    if (!plan.close_others)
        for (const FdAction& action : plan.fds)
            if (action.kind == Kind::closed) closed_.push_back(action.target);

    int highest_source = 2;
    for (int fd : used_later) highest_source = std::max(highest_source, fd);
    for (const FdWant& w : wants_) {
        highest_source = std::max(highest_source, w.source);
        targets_.push_back(w.target);
    }
    for (const ChildOpen& o : opens_) targets_.push_back(o.target);
    for (const ChildCopy& c : copies_) targets_.push_back(c.target);
    std::sort(targets_.begin(), targets_.end());
    if (const int made = highest_made(); made > 2) demand_below_limit(made);
    hole_first_ = static_cast<unsigned>(highest_source) + 1;
    kept_floor_ = std::max(highest_source, targets_.empty() ? 0 : targets_.back());
    steps_ = plan_fds(wants_, kept_floor_);
    add_file_actions(plan.file_actions);
    if (plan.close_others) add_gaps();
}

void SpawnFds::fill(ChildArgs& a) const noexcept {
    a.hole_first = hole_first_;
    a.kept_floor = kept_floor_;
    a.steps = steps_.data();
    a.n_steps = steps_.size();
    a.gaps = gaps_.data();
    a.n_gaps = gaps_.size();
    a.closed = closed_.data();
    a.n_closed = closed_.size();
    a.targets = targets_.data();
    a.n_targets = targets_.size();
    a.opens = opens_.data();
    a.n_opens = opens_.size();
    a.copies = copies_.data();
    a.n_copies = copies_.size();
}

std::string SpawnFds::describe(int target) const {
    const std::string to = " -> child's " + std::to_string(target);
    for (const FdWant& w : wants_)
        if (w.target == target) return arrow(w.source, target);
    for (const ChildOpen& o : opens_)
        if (o.target == target) return o.file.path + to;
    for (const ChildCopy& c : copies_)
        if (c.target == target) return "child's " + std::to_string(c.source) + to;
    for (const FdStep& s : steps_)
        if (s.target == target && s.kind == FdStep::Kind::open) return s.file.path + to;
    return std::to_string(target);
}

}  // namespace forkfd
