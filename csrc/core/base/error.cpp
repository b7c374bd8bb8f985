#include "core/base/error.h"

#include <cstring>
#include <stdexcept>

namespace forkfd {

namespace {

struct StageWords {
    const char* name;
    const char* text;
};

constexpr StageWords kWords[] = {
    {"none", "none"},
#define FORKFD_X(name, text) {#name, text},
    FORKFD_STAGES(FORKFD_X)
#undef FORKFD_X
};

}  // namespace

const char* stage_name(Stage stage) noexcept { return kWords[static_cast<int>(stage)].name; }
const char* stage_text(Stage stage) noexcept { return kWords[static_cast<int>(stage)].text; }

Stage stage_named(const std::string& name) {
    for (int i = 1; i < static_cast<int>(Stage::count); ++i)
        if (name == kWords[i].name) return static_cast<Stage>(i);
    throw std::invalid_argument("no spawn stage is named '" + name + "'");
}

SysError::SysError(Stage stage, int err, std::string subject)
    : stage_(stage), err_(err), subject_(std::move(subject)),
      text_(std::string(stage_text(stage)) + ": " + subject_ + ": " + std::strerror(err)) {}

void throw_sys(Stage stage, int err, std::string subject) {
    throw SysError(stage, err, std::move(subject));
}

}  // namespace forkfd
