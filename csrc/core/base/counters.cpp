#include "core/base/counters.h"

#include "core/base/fork_page.h"

namespace forkfd {

FORKFD_IN_CHILD Counters& counters() noexcept {
    FORKFD_FORK_PAGE static Counters counted;
    return counted;
}

}  // namespace forkfd
