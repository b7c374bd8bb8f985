#include "core/spawn/fd_plan.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

namespace forkfd {

std::vector<FdStep> plan_fds(std::vector<FdWant> wanted, int floor) {
    std::map<int, int> pending;   // target -> source
    std::map<int, int> readers;   // number -> count of pending targets that read it
    std::vector<FdStep> steps;
    int highest = std::max(2, floor);
    for (const FdWant& w : wanted) {
        if (w.target < 0 || w.source < 0)
            throw std::invalid_argument("descriptor map: negative descriptor in {" +
                                        std::to_string(w.target) + ": " +
                                        std::to_string(w.source) + "}");
        if (!pending.emplace(w.target, w.source).second)
            throw std::invalid_argument("descriptor map: " + std::to_string(w.target) +
                                        " is wanted twice");
        highest = std::max({highest, w.target, w.source});
        if (w.target != w.source) ++readers[w.source];
    }

    // A target that no other reads may be overwritten; then its source may be free, too.
    std::vector<int> ready;
    for (const auto& [target, source] : pending)
        if (target != source && readers[target] == 0) ready.push_back(target);
    const auto drain = [&] {
        while (!ready.empty()) {
            const int target = ready.back();
            ready.pop_back();
            const int source = pending.at(target);
            pending.erase(target);
            steps.push_back({FdStep::Kind::dup, target, source});
            const auto next = pending.find(source);
            if (--readers[source] == 0 && next != pending.end() && next->second != source)
                ready.push_back(source);
        }
    };
    drain();

    // The rest is identities and disjoint cycles: each cycle needs one copy.
    while (!pending.empty()) {
        const auto [first, source] = *pending.begin();
        pending.erase(pending.begin());
        if (first == source) {
            steps.push_back({FdStep::Kind::keep, first, first});
            continue;
        }
        steps.push_back({FdStep::Kind::save, first, source, highest});
        if (--readers[source] == 0) ready.push_back(source);
        drain();
        steps.push_back({FdStep::Kind::dup_saved, first, source});
    }
    return steps;
}

}  // namespace forkfd
