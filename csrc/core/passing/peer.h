// The process at the other end of a UNIX socket, unix(7).
#pragma once

#include <sys/socket.h>

#include "core/base/unique_fd.h"

namespace forkfd {

// All throw std::system_error.
ucred peer_credentials(int sock);          // SO_PEERCRED
UniqueFd peer_pidfd(int sock);             // SO_PEERPIDFD, Linux 6.5; ENOPROTOOPT before
void pass_credentials(int sock, bool on);  // SO_PASSCRED
void pass_pidfd(int sock, bool on);        // SO_PASSPIDFD, Linux 6.5
// Off: who sends descriptors to this socket gets EPERM.
void pass_rights(int sock, bool on);  // SO_PASSRIGHTS, Linux 6.16; ENOPROTOOPT before

}  // namespace forkfd
