#include "core/spawn/exec_watch.h"

#include <fcntl.h>

#include "core/base/error.h"

namespace forkfd {

namespace {

struct Pipe {
    UniqueFd reader, writer;
};

Pipe make_pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0)
        throw_sys(Stage::make_pipe, errno, "to see the child execute");
    return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

}  // namespace

ExecWatch::ExecWatch(bool wanted) {
    if (!wanted) return;
    Pipe fresh = make_pipe();
    reader_ = std::move(fresh.reader);
    writer_ = std::move(fresh.writer);
}

// The child's block names the number, so the pipe of a second attempt gets the same one.
void ExecWatch::arm() {
    if (!writer_ || reader_) return;
    Pipe fresh = make_pipe();
    if (::dup3(fresh.writer.get(), writer_.get(), O_CLOEXEC) < 0)
        throw_sys(Stage::make_pipe, errno, "to see the child execute");
    reader_ = std::move(fresh.reader);
}

void ExecWatch::wait() noexcept {
    if (!writer_) return;
    ::dup3(reader_.get(), writer_.get(), O_CLOEXEC);  // closes our writing end
    char byte;
    while (::read(reader_.get(), &byte, 1) < 0 && errno == EINTR) {}
    reader_.reset();
}

}  // namespace forkfd
