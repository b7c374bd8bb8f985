#include "core/base/names.h"

namespace forkfd {

std::string resource_name(int resource) {
    // The same numbers on x86-64 and aarch64: asm-generic/resource.h.
    static const char* const names[] = {"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS",
                                        "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS",
                                        "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"};
    if (resource < 0 || resource >= static_cast<int>(sizeof names / sizeof *names))
        return "resource " + std::to_string(resource);
    return std::string("RLIMIT_") + names[resource];
}

const std::vector<std::string>& capability_names() {
    static const std::vector<std::string> names = {
        "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID",
        "SETUID", "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN",
        "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE",
        "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME",
        "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
        "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
        "PERFMON", "BPF", "CHECKPOINT_RESTORE"};
    return names;
}

std::string capability_name(int capability) {
    const std::vector<std::string>& names = capability_names();
    if (capability < 0 || capability >= static_cast<int>(names.size()))
        return "capability " + std::to_string(capability);
    return "CAP_" + names[static_cast<std::size_t>(capability)];
}

}  // namespace forkfd
