#include "core/descriptors/fd_details.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/base/kernel_flags.h"

namespace forkfd {

namespace {

bool starts_with(const std::string& text, const char* prefix) {
    return text.rfind(prefix, 0) == 0;
}

// Majors of terminals: Documentation/admin-guide/devices.txt of Linux.
bool is_terminal(unsigned major) {
    return major == 4 || major == 5 || (major >= 136 && major <= 143) || major == 166 ||
           major == 188 || major == 204 || major == 229;
}

std::string kind_of(const FdRow& row) {
    const std::string& t = row.target;
    if (starts_with(t, "anon_inode:")) {
        std::string name = t.substr(11);
        if (name.size() > 2 && name.front() == '[') name = name.substr(1, name.size() - 2);
        return name == "eventpoll" ? "epoll" : name;
    }
    if (starts_with(t, "pidfd:[")) return "pidfd";  // Linux 6.9
    if (starts_with(t, "/memfd:")) return "memfd";
    switch (row.stat.mode & S_IFMT) {
        case S_IFREG: return t.empty() || t.front() == '/' ? "file" : "namespace";
        case S_IFDIR: return "directory";
        case S_IFLNK: return "symlink";
        case S_IFBLK: return "block device";
        case S_IFCHR: return is_terminal(row.stat.device_major) ? "tty" : "character device";
        case S_IFIFO: return "pipe";
        case S_IFSOCK: return "socket";
        default: break;
    }
    // Without stat: the server of the file does not respond.
    if (starts_with(t, "socket:[")) return "socket";
    return starts_with(t, "pipe:[") ? "pipe" : "unknown";
}

bool has_offset(const std::string& kind) {
    return kind == "file" || kind == "directory" || kind == "memfd" || kind == "block device" ||
           kind == "character device";
}

// Splits in place, so that each text passed to sscanf ends at its line's end.
template <class Handler>
void each_line(std::string& text, Handler handle) {
    for (std::size_t start = 0; start < text.size();) {
        std::size_t end = text.find('\n', start);
        if (end == std::string::npos) end = text.size();
        else text[end] = '\0';
        handle(text.c_str() + start);
        start = end + 1;
    }
}

void read_line(FdRow& row, const char* line) {
    unsigned flags;
    std::int64_t offset;
    if (std::sscanf(line, "flags: %o", &flags) == 1) {
        row.cloexec = (flags & O_CLOEXEC) != 0;
        row.flags = static_cast<int>(flags & ~static_cast<unsigned>(O_CLOEXEC));
    } else if (std::sscanf(line, "pos: %" SCNd64, &offset) == 1) {
        if (has_offset(row.kind)) row.offset = offset;
    }
}

void read_line(EpollDetails& d, const char* line) {
    EpollWatch w;
    unsigned sdev;
    if (std::sscanf(line, "tfd: %d events: %" SCNx32 " data: %" SCNx64
                    " pos:%*d ino:%" SCNx64 " sdev:%x",
                    &w.number, &w.events, &w.data, &w.inode, &sdev) != 5)
        return;
    w.device = device_of(sdev);
    d.watches.push_back(w);
}

void read_line(EventfdDetails& d, const char* line) {
    int value;
    std::sscanf(line, "eventfd-count: %" SCNx64, &d.count);
    if (std::sscanf(line, "eventfd-id: %d", &value) == 1) d.id = value;
    if (std::sscanf(line, "eventfd-semaphore: %d", &value) == 1) d.semaphore = value != 0;
}

void read_line(TimerfdDetails& d, const char* line) {
    std::int64_t seconds, ns;
    std::sscanf(line, "clockid: %d", &d.clock);
    std::sscanf(line, "ticks: %" SCNu64, &d.ticks);
    if (std::sscanf(line, "it_value: (%" SCNd64 ", %" SCNd64 ")", &seconds, &ns) == 2)
        d.remaining_ns = seconds * 1000000000 + ns;
    if (std::sscanf(line, "it_interval: (%" SCNd64 ", %" SCNd64 ")", &seconds, &ns) == 2)
        d.interval_ns = seconds * 1000000000 + ns;
}

void read_line(SignalfdDetails& d, const char* line) {
    std::sscanf(line, "sigmask: %" SCNx64, &d.mask);
}

void read_line(InotifyDetails& d, const char* line) {
    InotifyWatch w;
    unsigned watch, sdev;
    if (std::sscanf(line, "inotify wd:%x ino:%" SCNx64 " sdev:%x mask:%" SCNx32, &watch,
                    &w.inode, &sdev, &w.mask) != 4)
        return;
    w.watch = static_cast<int>(watch);
    w.device = device_of(sdev);
    d.watches.push_back(w);
}

void read_line(PidfdDetails& d, const char* line) { std::sscanf(line, "Pid: %d", &d.pid); }

template <class Details>
Details read_lines(std::string& fdinfo) {
    Details d;
    each_line(fdinfo, [&](const char* line) { read_line(d, line); });
    return d;
}

FdDetails own_pipe(int fd) {
    PipeDetails d;
    d.capacity = ::fcntl(fd, F_GETPIPE_SZ);
    if (d.capacity < 0 || ::ioctl(fd, FIONREAD, &d.unread) != 0) return std::monostate();
    return d;
}

FdDetails memfd(const FdRow& row, bool own) {
    const int seals = own ? ::fcntl(row.number, kGetSeals) : -1;
    return MemfdDetails{row.stat.size, seals < 0 ? std::nullopt : std::optional<int>(seals)};
}

FdDetails details_of(const FdRow& row, std::string& fdinfo, bool own) {
    const std::string& kind = row.kind;
    if (kind == "file" || kind == "directory") return FileDetails{row.stat.size, row.stat.links};
    if (kind == "memfd") return memfd(row, own);
    if (kind == "pipe" && own) return own_pipe(row.number);
    if (kind == "epoll") return read_lines<EpollDetails>(fdinfo);
    if (kind == "eventfd") return read_lines<EventfdDetails>(fdinfo);
    if (kind == "timerfd") return read_lines<TimerfdDetails>(fdinfo);
    if (kind == "signalfd") return read_lines<SignalfdDetails>(fdinfo);
    if (kind == "inotify") return read_lines<InotifyDetails>(fdinfo);
    if (kind == "pidfd") return read_lines<PidfdDetails>(fdinfo);
    return std::monostate();
}

// Whether link, stat and fdinfo are of one file, as far as they show.  The link and the text of
// fdinfo have the inode (Linux 5.14) and the mount (Linux 5.8) of stat, or the line of their
// kind.  On other file systems the inode of fdinfo may differ from that of stat (overlayfs).
bool of_one_file(const FdRow& row, const std::string& fdinfo) {
    const auto number_after = [](const std::string& text, const char* mark) -> std::uint64_t {
        const std::size_t at = text.find(mark);
        return at == std::string::npos
                   ? 0
                   : std::strtoull(text.c_str() + at + std::strlen(mark), nullptr, 10);
    };
    const FileStat& stat = row.stat;
    if (stat.mode == 0 && stat.inode == 0) return true;  // refused
    const std::uint64_t mount = number_after(fdinfo, "mnt_id:");
    if (stat.mount != 0 && mount != 0 && mount != stat.mount) return false;
    if (row.target.empty() || row.target.front() == '/') return true;
    const std::uint64_t inode = number_after(fdinfo, "ino:");
    if (inode != 0 && inode != stat.inode) return false;
    const std::uint64_t named = number_after(row.target, ":[");
    if (named != 0) return named == stat.inode;
    static constexpr struct {
        const char *kind, *line;
    } kLines[] = {{"eventfd", "eventfd-count:"}, {"timerfd", "clockid:"},
                  {"signalfd", "sigmask:"},      {"pidfd", "Pid:"}};
    for (const auto& line : kLines)
        if (row.kind == line.kind && fdinfo.find(line.line) == std::string::npos) return false;
    return true;
}

}  // namespace

bool describe(FdRow& row, std::string fdinfo, bool own) {
    row.kind = kind_of(row);
    if (!of_one_file(row, fdinfo)) return false;
    row.offset.reset();
    // The lines that all kinds share come first.
    std::string common = fdinfo.substr(0, 64);
    each_line(common, [&](const char* line) { read_line(row, line); });
    if ((row.flags & O_PATH) != 0) row.offset.reset();
    row.details = details_of(row, fdinfo, own);
    return true;
}

std::uint64_t device_of(unsigned sdev) noexcept { return makedev(sdev >> 20, sdev & 0xfffff); }

std::vector<EpollWatch> epoll_watches(std::string fdinfo) {
    return read_lines<EpollDetails>(fdinfo).watches;
}

}  // namespace forkfd
