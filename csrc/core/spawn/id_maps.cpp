#include "core/spawn/id_maps.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "core/base/fault.h"
#include "core/base/raw_syscall.h"
#include "core/base/unique_fd.h"

namespace forkfd {

namespace {

// The pid of this pidfd in our pid namespace.
long pid_of(int pidfd) {
    const std::string path = "/proc/self/fdinfo/" + std::to_string(pidfd);
    const UniqueFd info(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    char text[1024];
    const ssize_t n = info ? ::read(info.get(), text, sizeof text - 1) : -1;
    text[n < 0 ? 0 : n] = '\0';
    const char* line = std::strstr(text, "Pid:");
    long pid = -1;
    return line != nullptr && std::sscanf(line + 4, "%ld", &pid) == 1 ? pid : -1;
}

int write_file(const std::string& path, const std::string& text) {
    const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!fd) return errno;
    return ::write(fd.get(), text.data(), text.size()) < 0 ? errno : 0;
}

std::string lines(const std::vector<IdMap>& map) {
    std::string text;
    for (const IdMap& m : map)
        text += std::to_string(m.inside) + " " + std::to_string(m.outside) + " " +
                std::to_string(m.count) + "\n";
    return text;
}

}  // namespace

IdMapWriter::IdMapWriter(const SpawnPlan& plan, Report& report, const int& pidfd)
    : plan_(plan), report_(report) {
    fault::point(Stage::helper_thread, "writer of uid_map and gid_map");
    try {
        thread_ = std::thread([this, &pidfd] { serve(pidfd); });
    } catch (const std::system_error& e) {
        throw_sys(Stage::helper_thread, e.code().value(), "writer of uid_map and gid_map");
    }
}

IdMapWriter::~IdMapWriter() {
    int idle = kMapIdle;
    if (__atomic_compare_exchange_n(&report_.map_state, &idle, kMapCancelled, false,
                                    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        raw::call(SYS_futex, raw::addr(&report_.map_state), FUTEX_WAKE, 2);
    thread_.join();
}

void IdMapWriter::serve(const int& pidfd) {
    int* const state = &report_.map_state;
    while (__atomic_load_n(state, __ATOMIC_SEQ_CST) == kMapIdle)
        raw::call(SYS_futex, raw::addr(state), FUTEX_WAIT, kMapIdle, 0);
    if (__atomic_load_n(state, __ATOMIC_SEQ_CST) != kMapWanted) return;
    report_.map_err = write_maps(pidfd);
    __atomic_store_n(state, kMapWritten, __ATOMIC_SEQ_CST);
    raw::call(SYS_futex, raw::addr(state), FUTEX_WAKE, 1);
}

int IdMapWriter::write_maps(int pidfd) {
    const std::string proc = "/proc/" + std::to_string(pid_of(pidfd)) + "/";
    const auto write = [&](const char* name, const std::string& text) {
        subject_ = std::string(name) + ": " + text;
        std::replace(subject_.begin(), subject_.end(), '\n', ';');
        return write_file(proc + name, text);
    };
    if (!plan_.uid_map.empty())
        if (const int err = write("uid_map", lines(plan_.uid_map))) return err;
    if (plan_.gid_map.empty()) return 0;
    const std::string text = lines(plan_.gid_map);
    const int err = write("gid_map", text);
    if (err != EPERM) return err;
    // Without CAP_SETGID, setgroups() must be disabled before a gid_map is written.
    if (const int denied = write("setgroups", "deny")) return denied;
    return write("gid_map", text);
}

}  // namespace forkfd
