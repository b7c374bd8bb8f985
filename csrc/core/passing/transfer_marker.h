// The descriptor that all messages of one transfer share (fd_passing.h): a sealed memfd, so its
// content never changes, and no other transfer has the same one.
#pragma once

#include <cstdint>
#include <optional>

#include "core/base/unique_fd.h"

namespace forkfd {

// Empty and errno on failure.
UniqueFd make_marker(std::uint64_t total) noexcept;

// The number of descriptors of the transfer; std::nullopt: it is no marker.
std::optional<std::uint64_t> read_marker(int fd) noexcept;

bool same_marker(int a, int b) noexcept;  // read_marker() has accepted one of them

}  // namespace forkfd
