// Lines of FORKFD_DEBUG=exec=1 about one spawn.  The child cannot write them, since it shares our
// memory until its exec: the parent does, from the report.
#pragma once

#include <string>

#include "core/base/trace.h"
#include "core/spawn/spawn.h"
#include "core/spawn/spawn_attempt.h"

namespace forkfd {

class SpawnTrace {
  public:
    explicit SpawnTrace(const std::string& program) noexcept : program_(program) {}

    // The time, if the topic is on; else 0.
    std::uint64_t begin() const noexcept { return on() ? trace::now_ns() : 0; }
    void started() const noexcept {
        if (on()) line("started");
    }
    // From the clone to the exec, or to the step that failed.
    void cloned(const Attempt& attempt, long pid, const Report& report,
                std::uint64_t begun) const noexcept {
        if (!on()) return;
        const auto step = static_cast<Stage>(report.stage);
        trace::Line cloned = line("clone");
        cloned.field("backend", backend_name(attempt.backend()));
        if (pid < 0) cloned.field("errno", -pid);
        else cloned.field("child", pid);
        if (pid > 0 && !(step == Stage::exec && report.err == 0))
            cloned.field("step", stage_name(step)).field("errno", report.err);
        cloned.duration(begun);
    }
    void gave_way(const char* without, int err) const noexcept {
        if (on()) line("give_way").field("without", without).field("errno", err);
    }
    void busy() const noexcept {
        if (on()) line("busy");
    }
    void executed(const SpawnResult& child, std::uint64_t begun) const noexcept {
        if (!on()) return;
        line("executed").field("child", child.pid)
            .field("backend", backend_name(child.backend)).duration(begun);
    }
    void failed(const SysError& error, std::uint64_t begun) const noexcept {
        if (!on()) return;
        line("failed").field("step", stage_name(error.stage())).field("on", error.subject())
            .field("errno", error.err()).duration(begun);
    }

  private:
    static bool on() noexcept { return trace::on(trace::kExec); }
    trace::Line line(const char* stage) const noexcept {
        return trace::Line("exec", stage, program_);
    }

    const std::string& program_;
};

}  // namespace forkfd
