// Names of kernel constants, for messages and for options given by name.
#pragma once

#include <string>
#include <vector>

namespace forkfd {

std::string resource_name(int resource);             // "RLIMIT_NOFILE", getrlimit(2)
const std::vector<std::string>& capability_names();  // "CHOWN", ... by number, capabilities(7)
std::string capability_name(int capability);         // "CAP_CHOWN"

}  // namespace forkfd
