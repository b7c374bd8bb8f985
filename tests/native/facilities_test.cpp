// Which facility a refusal takes away, and which refusals are remembered.
#include <cerrno>
#include <vector>

#include "core/base/raw_syscall.h"
#include "core/spawn/facilities.h"
#include "support.h"

using forkfd::Facilities;
using forkfd::Needs;
using forkfd::Refusal;
using forkfd::Refusals;

namespace {

constexpr Facilities kAll = {true, true, true, true, true, true};
constexpr Needs kNone = {false, false, false};
constexpr int kPasses[] = {EAGAIN, ENOMEM, EMFILE, ENFILE, ENOSPC, EINTR, EBUSY, EUSERS};
constexpr int kLasts[] = {ENOSYS, EPERM, EINVAL, E2BIG};

std::vector<const Refusal*> all_of(const Refusals& r) {
    return {&r.clone3,      &r.clear_sighand, &r.into_cgroup,  &r.clone_files,
            &r.clone_pidfd, &r.unshare,       &r.shared_memory};
}

int count_of(const Refusals& seen) {
    int count = 0;
    for (const Refusal* refusal : all_of(seen)) count += static_cast<bool>(*refusal);
    return count;
}

// The names of what is given up, one after the other, if every attempt fails with `err`.
std::string given_up(Facilities used, const Needs& needs, int err, Refusals& seen) {
    std::string names;
    while (const char* const name = forkfd::give_way(used, needs, err, seen))
        names += std::string(names.empty() ? "" : " ") + name;
    return names;
}

}  // namespace

TEST(a_shortage_takes_nothing_away_and_is_not_remembered) {
    for (const int err : kPasses)
        for (unsigned bits = 0; bits < 64; ++bits) {
            Refusals seen;
            const auto bit = [bits](int n) { return (bits >> n & 1) != 0; };
            Facilities used = {bit(0), bit(1), bit(2), bit(3), bit(4), bit(5)};
            CHECK(forkfd::give_way(used, kNone, err, seen) == nullptr);
            CHECK(forkfd::give_way_unshare(used, err, seen) == nullptr);
            CHECK_EQ(used.clone3, bit(0));
            CHECK_EQ(used.share_table, bit(2));
            CHECK_EQ(count_of(seen), 0);
        }
}

TEST(a_refusal_remembers_only_what_lasts) {
    for (const int err : kPasses) {
        Refusal refusal;
        refusal.remember(err);
        CHECK_EQ(refusal.err(), 0);
    }
    for (const int err : kLasts) {
        Refusal refusal;
        refusal.remember(err);
        refusal.remember(EAGAIN);
        CHECK_EQ(refusal.err(), err);
        refusal.forget();
        CHECK(!refusal);
    }
}

TEST(facilities_go_one_by_one_and_each_loop_ends) {
    Refusals seen;
    CHECK_EQ(given_up(kAll, kNone, EINVAL, seen),
             std::string("CLONE_INTO_CGROUP CLONE_CLEAR_SIGHAND clone3 CLONE_FILES CLONE_PIDFD"));
    CHECK_EQ(seen.into_cgroup.err(), 0);  // the cgroup may have refused the child
    CHECK_EQ(seen.clear_sighand.err(), EINVAL);
    CHECK_EQ(seen.clone3.err(), EINVAL);
    CHECK_EQ(seen.clone_files.err(), EINVAL);
    CHECK_EQ(seen.clone_pidfd.err(), EINVAL);

    Refusals old;  // a kernel, or a filter, without clone3
    CHECK_EQ(given_up(kAll, kNone, ENOSYS, old), std::string("CLONE_INTO_CGROUP clone3"));
    CHECK_EQ(old.clone3.err(), ENOSYS);
    CHECK_EQ(count_of(old), 1);

    Refusals small;  // Linux 5.3 to 5.6
    CHECK_EQ(given_up(kAll, kNone, E2BIG, small), std::string("CLONE_INTO_CGROUP clone3"));
    CHECK_EQ(small.into_cgroup.err(), E2BIG);
}

TEST(what_a_request_needs_is_not_given_up) {
    Refusals seen;
    CHECK_EQ(given_up(kAll, {true, true, true}, EINVAL, seen),
             std::string("CLONE_INTO_CGROUP CLONE_CLEAR_SIGHAND"));
    CHECK_EQ(given_up(kAll, {false, true, true}, EINVAL, seen),
             std::string("CLONE_INTO_CGROUP CLONE_CLEAR_SIGHAND clone3 CLONE_FILES"));
    CHECK_EQ(count_of(seen), 0);  // its namespaces may be the reason
    CHECK_EQ(given_up(kAll, {false, false, true}, ENOSYS, seen),
             std::string("CLONE_INTO_CGROUP clone3"));
    CHECK_EQ(seen.clone3.err(), ENOSYS);  // no flag is the reason of that
}

TEST(a_table_that_cannot_be_unshared_is_copied) {
    Refusals seen;
    Facilities used = kAll;
    CHECK_EQ(std::string(forkfd::give_way_unshare(used, ENOSYS, seen)),
             std::string("CLOSE_RANGE_UNSHARE"));
    CHECK(!used.share_table && used.clone3);
    CHECK_EQ(seen.unshare.err(), ENOSYS);
    CHECK(forkfd::give_way_unshare(used, ENOSYS, seen) == nullptr);
}

namespace {

// main() fills it, for check::run() finds out about shared memory before its first test.
int first_probe = 0;

}  // namespace

TEST(a_shortage_leaves_the_back_end_as_it_was) {
    if (support::emulated()) throw check::Skip("an emulator takes no filter");
    CHECK_EQ(first_probe, EAGAIN);
    const auto fails_at = [](forkfd::Stage stage) {
        try {
            support::spawn(support::plan_of_true());
            CHECK(!"started");
        } catch (const forkfd::SysError& error) {
            CHECK_EQ(error.stage(), stage);
            CHECK_EQ(error.err(), ENOMEM);
        }
        CHECK_EQ(count_of(forkfd::refusals()), 0);
    };
    support::without({SYS_clone, forkfd::raw::nr_clone3},
                     [&] { fails_at(forkfd::Stage::clone); }, ENOMEM);
    support::without({forkfd::raw::nr_close_range},
                     [&] { fails_at(forkfd::Stage::unshare_descriptors); }, ENOMEM);
    const support::SpawnResult child = support::spawn(support::plan_of_true());
    CHECK_EQ(support::exit_code(child), 0);
    CHECK_EQ(child.backend, support::expected(std::nullopt));
}

int main(int argc, char** argv) {
    if (const auto code = support::helper(argc, argv)) return *code;
    if (!support::emulated())
        support::without({SYS_clone}, [] { first_probe = forkfd::why_memory_is_not_shared(); },
                         EAGAIN);
    return check::run(argc, argv);
}
