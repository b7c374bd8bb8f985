// Timings of Python's handlers, those of one phase side by side: after a fork each page that is
// written costs a page fault, so a hundred handlers write one page, not fifty.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <vector>

#include "core/base/timing.h"

namespace forkfd::bind {

// Guarded by its owner; places stay where they are.
template <std::size_t Phases>
class TimingPool {
  public:
    using Place = std::array<Timing*, Phases>;

    Place take() {
        if (free_.empty()) {
            chunks_.push_back(std::make_unique<Chunk>());
            for (std::size_t i = kSize; i > 0; --i) {
                Place place;
                for (std::size_t phase = 0; phase < Phases; ++phase)
                    place[phase] = &(*chunks_.back())[phase][i - 1];
                free_.push_back(place);
            }
        }
        const Place place = free_.back();
        free_.pop_back();
        for (Timing* const timing : place) timing->clear();
        return place;
    }

    void give_back(const Place& place) { free_.push_back(place); }

  private:
    static constexpr std::size_t kSize = 128;  // a page of each phase
    static constexpr std::size_t kPage = 4096;
    struct alignas(kPage) Chunk : std::array<std::array<Timing, kSize>, Phases> {};

    std::vector<std::unique_ptr<Chunk>> chunks_;
    std::vector<Place> free_;
};

}  // namespace forkfd::bind
