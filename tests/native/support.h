// What the native tests share: a program to spawn (this one, as a helper), plans for each
// Stage, and what the machine below can do.
#pragma once

#include <cerrno>
#include <functional>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "core/base/pidfd.h"
#include "core/spawn/spawn.h"
#include "core/spawn/spawn_attempt.h"

namespace forkfd {
inline std::ostream& operator<<(std::ostream& out, Backend b) { return out << backend_name(b); }
inline std::ostream& operator<<(std::ostream& out, Stage s) { return out << stage_name(s); }
}  // namespace forkfd

namespace support {

using forkfd::Backend;
using forkfd::FdAction;
using forkfd::SpawnPlan;
using forkfd::SpawnResult;
using forkfd::Stage;

bool emulated();  // by qemu's user mode, which runs CLONE_VM children on a copy
Backend expected(std::optional<Backend> forced);  // what must run on this machine

// Forces each back end that this machine has, in turn.
void with_each_backend(const std::function<void(Backend)>& body);

// Runs `body` on a thread whose system calls with these numbers fail with `err`: ENOSYS as in
// an older kernel.  What the core remembers of it is forgotten at the end.
void without(std::initializer_list<long> calls, const std::function<void()>& body,
             int err = ENOSYS);

// Forces a back end until the end of the scope.
class Forced {
  public:
    explicit Forced(std::optional<Backend> backend) { forkfd::force_backend(backend); }
    ~Forced() { forkfd::force_backend(std::nullopt); }
};

// Makes `stage` fail until the end of the scope.
class Fault {
  public:
    Fault(Stage stage, int err);
    ~Fault();
};

SpawnPlan plan_of(std::vector<std::string> argv);  // argv[0] is the path
SpawnPlan plan_of_true();                          // exits with 0, whatever is open
SpawnPlan plan_of_self(std::vector<std::string> arguments);  // helper(), below

// In main() before the tests: what this program does when a test spawns it.
//   exit N     kill N     report     sleep
// `report` writes to its standard output a line per fact: see Facts.
std::optional<int> helper(int argc, char** argv);

struct Facts {
    pid_t pid = 0;
    std::map<int, std::string> fds;  // number -> "device:inode"; 1 is the report itself
    std::string mask;                // blocked signals, hexadecimal
    std::map<int, std::string> dispositions;  // signal -> "default", "ignored", "handled"
    std::map<std::string, std::string> env;
    std::string cwd;
    unsigned umask = 0;
};
std::string identity(int fd);  // "device:inode"

// Spawns the helper `report` with the options of `plan` and descriptor 1 as its pipe.
Facts facts_of(SpawnPlan plan, const std::vector<int>& sources = {});

SpawnResult spawn(const SpawnPlan& plan, const std::vector<int>& sources = {});
forkfd::ExitInfo wait(const SpawnResult& child);  // the pidfd, no polling
int exit_code(const SpawnResult& child);          // fails the test if it was killed

// The error of a spawn that must fail, on a thread that has no child stack yet.
forkfd::SysError error_of(const SpawnPlan& plan);

// Plans that enter each of the stages, with as little else as can be.  A fault at the
// stage comes before its system call, so no privilege is wanted.
const std::vector<Stage>& all_stages();
SpawnPlan plan_entering(Stage stage);
bool can_enter(Stage stage, Backend backend);  // on this machine

// As many options at once as this user may have.
SpawnPlan rich_plan();

// Opened once: a cgroup (or -1) and the master of a terminal.
int some_cgroup();
int some_terminal();

}  // namespace support
