// The descriptor by which the messages of one transfer know each other (fd_passing.h): a
// sealed memfd, so what was read of it stays true, and whoever has another has not this one.
#pragma once

#include <cstdint>
#include <optional>

#include "core/base/unique_fd.h"

namespace forkfd {

// Empty and errno on failure.
UniqueFd make_marker(std::uint64_t total) noexcept;

// How many descriptors the transfer has; std::nullopt: it is no marker.
std::optional<std::uint64_t> read_marker(int fd) noexcept;

bool same_marker(int a, int b) noexcept;  // of one, `read_marker` was asked

}  // namespace forkfd
