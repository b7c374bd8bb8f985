// Positive control of the trap: the same child, through the same clone, but one that
// allocates first.  If the trap did not spring here, its silence would prove nothing.
#include "core/spawn/child_args.h"

// child.cpp is part of this program under another name, and called from our own run().
#define run run_as_it_is
#include "core/spawn/child.cpp"
#undef run

#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "support.h"
#include "trap.h"

using namespace support;

namespace {

void* volatile sink;
const char* volatile what_to_call = "";

void misbehave() {
    const std::string_view what = what_to_call;
    if (what == "malloc") sink = std::malloc(24);
    if (what == "calloc") sink = std::calloc(2, 24);
    if (what == "realloc") sink = std::realloc(sink, 48);
    if (what == "free") std::free(sink);
    if (what == "new") sink = new char[24];
    if (what == "delete") delete static_cast<char*>(sink);
    if (what == "strdup") sink = ::strdup("libc allocates for its callers");
}

}  // namespace

namespace forkfd::child {
[[noreturn]] void run(void* args) noexcept {
    misbehave();
    run_as_it_is(args);
}
}  // namespace forkfd::child

TEST(the_trap_springs_for_a_child_that_allocates) {
    const std::pair<const char*, const char*> cases[] = {
        {"malloc", "malloc"}, {"calloc", "calloc"}, {"realloc", "realloc"}, {"free", "free"},
        {"new", "operator new"}, {"delete", "operator delete"}, {"strdup", "malloc"}};
    with_each_backend([&](Backend backend) {
        for (const auto& [call, seen] : cases) {
            sink = std::malloc(16);
            what_to_call = call;
            trap::arm();
            const SpawnResult child = spawn(plan_of_true());
            trap::disarm();
            what_to_call = "";
            CHECK_EQ(child.backend, expected(backend));
            CHECK_EQ(exit_code(child), 0);
            CHECK_EQ(trap::sprung(), 1);
            CHECK_EQ(std::string(trap::last_call()), std::string(seen));
        }
    });
}

TEST(the_trap_is_silent_for_the_same_child_when_it_behaves) {
    with_each_backend([](Backend) {
        trap::arm();
        const SpawnResult child = spawn(plan_of_true());
        trap::disarm();
        CHECK_EQ(exit_code(child), 0);
        CHECK_EQ(trap::sprung(), 0);
    });
}

TEST(the_parent_may_allocate_while_the_trap_is_armed) {
    trap::arm();
    delete new std::string(1000, 'x');
    trap::disarm();
    CHECK_EQ(trap::sprung(), 0);
}

int main(int argc, char** argv) {
    if (const auto code = helper(argc, argv)) return *code;
    return check::run(argc, argv);
}
