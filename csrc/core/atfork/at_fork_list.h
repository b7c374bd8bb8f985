// An ordered list of at-fork handlers, which decides the order of their calls and nothing else.
// No fork, no lock, no thread: the list is tested without any of them, and its owners guard it.
//
// `before` handlers run last in, first out, the others first in, first out, as in
// pthread_atfork(3).  `order` comes before the time of registration: a handler of a lower order
// counts as registered earlier.
//
// A fork is a Round.  Its handlers are fixed when it begins: a handler that is added later, even
// by a running handler, waits for the next round, so no `after` is called without its `before`.
// A removed handler is not called any more, at once.
//
// Copy on write: a change makes a new vector, and the old one stays until the rounds that are
// under way have ended.  The list counts them, not the vector, so that a round writes to one
// place after the fork.  A round allocates nothing; its end drops what was removed during it.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>
#include <vector>

namespace forkfd {

template <class Handler>
class AtForkList {
  public:
    struct Entry {
        Entry(int id, int order, Handler handler)
            : id(id), order(order), handler(std::move(handler)) {}
        const int id;
        const int order;
        Handler handler;
        std::atomic<bool> removed{false};
    };
    using Entries = std::vector<std::shared_ptr<Entry>>;
    using Shared = std::shared_ptr<const Entries>;

    // Not to be used after the list's end() for it; a copy is the same round.
    class Round {
      public:
        Round() = default;
        explicit Round(const Entries& entries) : entries_(&entries), first_(entries.size()) {}

        // Calls call(entry) for each, last to first, until one returns false; then returns
        // false, and neither that one nor those not reached are called afterwards.
        template <class Call>
        bool before(Call&& call) {
            while (first_ > 0) {
                Entry& entry = *(*entries_)[first_ - 1];
                if (!entry.removed.load(std::memory_order_acquire) && !call(entry)) return false;
                --first_;
            }
            return true;
        }

        // Calls call(entry) for each that was reached, first to last.
        template <class Call>
        void after(Call&& call) {
            if (entries_ == nullptr) return;
            for (std::size_t i = first_; i < entries_->size(); ++i) {
                Entry& entry = *(*entries_)[i];
                if (!entry.removed.load(std::memory_order_acquire)) call(entry);
            }
        }

        // Calls all of them afterwards, for a round that began without before().
        void reach_all() noexcept { first_ = 0; }

      private:
        const Entries* entries_ = nullptr;
        std::size_t first_ = 0;  // the first one reached
    };

    int add(Handler handler, int order = 0) {
        const int id = ++last_id_;
        auto entry = std::make_shared<Entry>(id, order, std::move(handler));
        auto changed = std::make_shared<Entries>(*entries_);
        const auto later = std::find_if(changed->begin(), changed->end(),
                                        [order](const auto& e) { return e->order > order; });
        changed->insert(later, std::move(entry));
        replace(std::move(changed));
        return id;
    }

    // False: no entry has that id (any more).
    bool remove(int id) {
        const Shared old = entries_;
        const auto found = std::find_if(old->begin(), old->end(),
                                        [id](const auto& e) { return e->id == id; });
        if (found == old->end()) return false;
        auto changed = std::make_shared<Entries>();
        changed->reserve(old->size() - 1);
        for (const auto& entry : *old)
            if (entry != *found) changed->push_back(entry);
        replace(std::move(changed));
        (*found)->removed.store(true, std::memory_order_release);
        return true;
    }

    Round begin() {
        ++rounds_;
        return Round(*entries_);
    }
    // Returns the vectors that were retained for rounds alone; dropping them may run any code.
    [[nodiscard]] std::vector<Shared> end() { return end_but(rounds_ - 1); }
    // In a child: `left` rounds remain; those of the parent's other threads would never end.
    [[nodiscard]] std::vector<Shared> end_but(int left) {
        rounds_ = left;
        if (left > 0) return {};
        return std::exchange(replaced_, {});
    }
    Shared entries() const { return entries_; }

  private:
    void replace(Shared changed) {
        if (rounds_ > 0) replaced_.push_back(entries_);
        entries_ = std::move(changed);
    }

    Shared entries_ = std::make_shared<Entries>();
    int last_id_ = 0;
    int rounds_ = 0;                // under way
    std::vector<Shared> replaced_;  // since the first of them began
};

}  // namespace forkfd
