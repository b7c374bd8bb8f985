#include "core/descriptors/fd_table.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <system_error>
#include <tuple>

#include "core/base/kernel_statx.h"
#include "core/base/pidfd.h"
#include "core/base/raw_syscall.h"
#include "core/base/unique_fd.h"
#include "core/descriptors/descriptor.h"

namespace forkfd {

namespace {

struct Name {  // of a descriptor in /proc/PID/fd
    char text[12];
    explicit Name(int number) { *std::to_chars(text, text + sizeof text - 1, number).ptr = '\0'; }
};

class Snapshot {
  public:
    explicit Snapshot(pid_t pid)
        : pid_(pid), what_(pid == 0 ? "our descriptors"
                                    : "descriptors of process " + std::to_string(pid)) {}

    FdTable take() {
        try {
            read_all();
        } catch (const std::system_error& e) {
            fail(e.code().value());  // the process ended meanwhile
        }
        find_shared();
        return std::move(table_);
    }

  private:
    void read_all() {
        const std::string path =
            pid_ == 0 ? "/proc/thread-self" : "/proc/" + std::to_string(pid_);
        process_ = open_folder(AT_FDCWD, path.c_str());
        UniqueFd folder(::openat(process_.get(), "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        if (!folder) fail(errno);
        // All numbers before the first is read: reading opens descriptors of our own.
        std::vector<int> numbers = list_descriptors(std::move(folder), pid_ == 0);
        if (pid_ == 0)
            numbers.erase(std::remove(numbers.begin(), numbers.end(), process_.get()),
                          numbers.end());
        // The folders are held open: a path could lead to another process later.
        links_ = open_folder(process_.get(), "fd");
        infos_ = open_folder(process_.get(), "fdinfo");
        own_links_ = open_folder(AT_FDCWD, "/proc/thread-self/fd");
        table_.rows.reserve(numbers.size());
        for (const int number : numbers) {
            FdRow row;
            row.number = number;
            if (read(row)) table_.rows.push_back(std::move(row));
        }
        if (::faccessat(process_.get(), "stat", F_OK, 0) != 0)
            throw_errno(errno, "stat");  // the process has ended
    }

    UniqueFd open_folder(int at, const char* path) const {
        UniqueFd folder(::openat(at, path, O_PATH | O_DIRECTORY | O_CLOEXEC));
        if (!folder) fail(errno);
        return folder;
    }

    [[noreturn]] void fail(int err) const {
        if (pid_ != 0 && (err == ENOENT || err == ESRCH)) {
            const bool mounted = ::access("/proc/self", F_OK) == 0;
            throw_errno(mounted ? ESRCH : ENOENT, mounted ? what_ : what_ + ": /proc");
        }
        if (err == EACCES || err == EPERM)
            throw_errno(err, what_ + ": needs its user, or CAP_SYS_PTRACE");
        throw_errno(err, what_ + ": /proc");
    }

    // False: closed since it was listed.  A number may be closed and opened again while it is
    // read; then the parts do not match, and it is read again.  A number that never matches is
    // closed most of the time.
    bool read(FdRow& row) {
        for (int attempt = 0; attempt < 1000; ++attempt) {
            if (!read_name(row)) return false;
            std::string fdinfo;
            if (!read_fdinfo(row.number, fdinfo)) return false;
            if (describe(row, std::move(fdinfo), pid_ == 0) && describe_socket(row)) return true;
        }
        return false;
    }

    // Reads target and stat of one file, which an O_PATH descriptor holds.  No duplicate is made:
    // closing one would drop the process's record locks (fcntl(2)).
    bool read_name(FdRow& row) {
        const UniqueFd name(::openat(links_.get(), Name(row.number).text, O_PATH | O_CLOEXEC));
        if (name) {
            row.stat = stat(name.get());
            if (read_link(own_links_, name.get(), row.target)) return true;
            if (errno != ENAMETOOLONG) throw_errno(errno, "readlink");
            row.target.clear();  // the kernel's d_path() has one page
            return true;
        }
        if (errno == ENOENT || errno == ESRCH) return false;
        if (errno == EMFILE || errno == ENFILE) fail(errno);
        row.stat = {};  // for one, its file server does not respond
        return read_link(links_, row.number, row.target) || gone(errno);
    }

    bool read_link(const UniqueFd& folder, int number, std::string& target) {
        for (;;) {
            const ssize_t n =
                ::readlinkat(folder.get(), Name(number).text, &link_[0], link_.size());
            if (n < 0) return false;
            if (static_cast<std::size_t>(n) < link_.size()) {
                target.assign(link_, 0, static_cast<std::size_t>(n));
                return true;
            }
            link_.resize(link_.size() * 2);
        }
    }

    bool read_fdinfo(int number, std::string& text) {
        const UniqueFd file(::openat(infos_.get(), Name(number).text, O_RDONLY | O_CLOEXEC));
        if (!file) return gone(errno);
        char buffer[4096];
        for (;;) {
            const ssize_t n = ::read(file.get(), buffer, sizeof buffer);
            if (n < 0) return gone(errno);
            text.append(buffer, static_cast<std::size_t>(n));
            if (static_cast<std::size_t>(n) < sizeof buffer) return true;  // seq_file: no more
        }
    }

    // Descriptor and process may end at any time; /proc reports ESRCH for both.
    bool gone(int err) const {
        if (err != ENOENT && err != ESRCH) fail(err);
        return false;
    }

    static FileStat stat(int name) {
        KernelStatx s = {};
        FileStat found;
        // Cached values suffice: a dead file server must not block the snapshot.
        const long rc = raw::call(SYS_statx, name, raw::addr(""), AT_EMPTY_PATH | kStatxDontSync,
                                  kStatxBasic | kStatxMount, raw::addr(&s));
        if (rc == 0) {
            found.mode = s.mode;
            found.links = s.links;
            found.device_major = s.rdev_major;
            found.device = makedev(s.dev_major, s.dev_minor);
            found.inode = s.inode;
            found.size = s.size;
            if ((s.mask & kStatxMount) != 0) found.mount = s.mount;
            return found;
        }
        struct stat old;
        if (::fstat(name, &old) != 0) return found;
        found.mode = old.st_mode;
        found.links = static_cast<unsigned>(old.st_nlink);
        found.device_major = major(old.st_rdev);
        found.device = old.st_dev;
        found.inode = old.st_ino;
        found.size = static_cast<std::uint64_t>(old.st_size);
        return found;
    }

    // False: the number is no socket any more.
    bool describe_socket(FdRow& row) {
        if (!is_socket(row)) return true;
        if (pid_ == 0) {
            std::optional<SocketDetails> s = socket_details(row.number);
            if (!s) return false;
            if (s->listening && !s->backlog)
                if (const SocketDetails* more = diag_.find(row.stat.inode)) {
                    s->backlog = more->backlog;
                    s->waiting = more->waiting;
                }
            row.details = std::move(*s);
        } else if (const SocketDetails* s = diag_.find(row.stat.inode)) {
            row.details = *s;
        } else if (const UniqueFd copy = take_copy(row.number); copy) {
            // In another network namespace, or of another family.
            if (std::optional<SocketDetails> s = socket_details(copy.get()))
                row.details = std::move(*s);
        }
        return true;
    }

    // pidfd_getfd(2), for sockets only, which have no record locks to lose.
    UniqueFd take_copy(int number) {
        if (!pidfd_ && !pidfd_refused_) {
            pidfd_ = open_pidfd(pid_);
            pidfd_refused_ = !pidfd_;
        }
        if (!pidfd_) return {};
        const long fd = raw::call(raw::nr_pidfd_getfd, pidfd_.get(), number, 0);
        return UniqueFd(fd < 0 ? -1 : static_cast<int>(fd));
    }

    // Only descriptors of one inode can be one open file, so those of each inode are sorted by
    // kcmp(2): n log n calls at most, and none for an inode that occurs once.
    void find_shared() {
        std::vector<FdRow*> rows;
        for (FdRow& row : table_.rows)
            if (row.stat.mode != 0) rows.push_back(&row);
        const auto inode = [](const FdRow* r) {
            return std::make_tuple(r->stat.device, r->stat.inode,
                                   r->flags & (O_ACCMODE | O_PATH));
        };
        std::stable_sort(rows.begin(), rows.end(), [&](const FdRow* a, const FdRow* b) {
            return inode(a) < inode(b);
        });
        for (auto first = rows.begin(); first != rows.end();) {
            auto last = first + 1;
            while (last != rows.end() && inode(*last) == inode(*first)) ++last;
            std::vector<FdRow*> same(first, last);
            // A socket cannot be opened twice, so its inode is the open file.
            const bool one = same.size() == 1 || is_socket(*same[0]);
            if (one || sort_by_open_file(same)) group(same, one);
            first = last;
        }
    }

    static bool is_socket(const FdRow& row) {
        return row.kind == "socket" && (row.flags & O_PATH) == 0;
    }

    // False: kcmp is refused.  Descriptors may be closed meanwhile, which makes the order
    // inconsistent; that is undefined behaviour in std::sort, and harmless in this merge.
    bool sort_by_open_file(std::vector<FdRow*>& rows) const {
        const pid_t pid = pid_ == 0 ? own_tid() : pid_;
        std::vector<FdRow*> merged(rows.size());
        for (std::size_t width = 1; width < rows.size(); width *= 2) {
            for (std::size_t start = 0; start < rows.size(); start += 2 * width) {
                const std::size_t middle = std::min(start + width, rows.size());
                const std::size_t end = std::min(middle + width, rows.size());
                std::size_t a = start, b = middle, out = start;
                while (a < middle && b < end) {
                    const int order = compare_open_files(pid, rows[a]->number, rows[b]->number);
                    if (order < 0 && order != -EBADF) return false;
                    merged[out++] = order == 2 ? rows[b++] : rows[a++];
                }
                while (a < middle) merged[out++] = rows[a++];
                while (b < end) merged[out++] = rows[b++];
            }
            rows.swap(merged);
        }
        return true;
    }

    void group(const std::vector<FdRow*>& sorted, bool one) {
        const pid_t pid = pid_ == 0 ? own_tid() : pid_;
        const FdRow* previous = nullptr;
        for (FdRow* row : sorted) {
            if (previous == nullptr ||
                (!one && compare_open_files(pid, previous->number, row->number) != 0))
                table_.open_files.emplace_back();
            table_.open_files.back().push_back(row->number);
            row->open_file = static_cast<int>(table_.open_files.size()) - 1;
            previous = row;
        }
    }

    const pid_t pid_;
    const std::string what_;
    UniqueFd process_, links_, infos_, own_links_, pidfd_;
    bool pidfd_refused_ = false;
    std::string link_ = std::string(4096, '\0');
    SockDiag diag_;
    FdTable table_;
};

}  // namespace

FdTable fd_table(pid_t pid) { return Snapshot(pid == ::getpid() ? 0 : pid).take(); }

}  // namespace forkfd
