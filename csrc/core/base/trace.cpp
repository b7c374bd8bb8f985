#include "core/base/trace.h"

#include <fcntl.h>
#include <linux/stat.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "core/base/raw_syscall.h"

namespace forkfd::trace {

namespace {

struct Identity {
    std::uint64_t device, inode;  // inode 0: unknown
};

// Read one by one: a change of target while other threads write may lose a line.
std::atomic<int> target{2};
std::atomic<bool> target_is_ours{false};
std::atomic<std::uint64_t> target_device{0}, target_inode{0};
std::atomic<unsigned> lost{0};  // lines not written since the last that was

Identity identity(int fd) noexcept {
    struct statx info;
    if (raw::call(SYS_statx, fd, raw::addr(""), AT_EMPTY_PATH, STATX_INO, raw::addr(&info)) != 0)
        return {0, 0};
    return {std::uint64_t{info.stx_dev_major} << 32 | info.stx_dev_minor, info.stx_ino};
}

bool still_ours(int fd) noexcept {
    const Identity now = identity(fd);
    return now.inode == target_inode.load() && now.device == target_device.load();
}

}  // namespace

void configure(unsigned wanted, int fd, bool owned) noexcept {
    topics = 0;
    const int before = target.load();
    const bool close = target_is_ours.load() && before != fd && still_ours(before);
    const Identity file = identity(fd);
    target_is_ours = owned;
    target_device = file.device;
    target_inode = file.inode;
    target = fd;
    lost = 0;
    if (close) raw::call(SYS_close, before);
    topics = wanted;
}

std::uint64_t now_ns() noexcept {
    timespec now = {};
    raw::call(SYS_clock_gettime, CLOCK_MONOTONIC, raw::addr(&now));
    return static_cast<std::uint64_t>(now.tv_sec) * 1000000000U +
           static_cast<std::uint64_t>(now.tv_nsec);
}

// Two bytes stay free, for the end of a text and of the line.
bool Line::put(std::string_view text) noexcept {
    if (text.size() > kSize - 2 - size_) return false;
    for (const char c : text) buffer_[size_++] = c;
    return true;
}

bool Line::put(std::uint64_t number, int least_digits) noexcept {
    char digits[20];
    std::size_t first = sizeof digits;
    do {
        digits[--first] = static_cast<char>('0' + number % 10);
        number /= 10;
        --least_digits;
    } while (number != 0 || least_digits > 0);
    return put({digits + first, sizeof digits - first});
}

bool Line::begin(const char* name) noexcept { return put(" ") && put(name) && put("="); }

Line::Line(const char* event, const char* stage, std::string_view subject) noexcept {
    const std::uint64_t now = now_ns();
    put("forkfd t=");
    put(now / 1000000000);
    put(".");
    put(now / 1000 % 1000000, 6);
    put(" pid=");
    put(static_cast<std::uint64_t>(raw::call(SYS_getpid)));
    put(" tid=");
    put(static_cast<std::uint64_t>(raw::call(SYS_gettid)));
    put(" event=");
    put(event);
    put(" stage=");
    put(stage);
    if (!subject.empty()) field("subject", subject);
}

Line& Line::field(const char* name, long long number) noexcept {
    const std::size_t start = size_;
    const bool negative = number < 0;
    // Not -number, which overflows for the lowest number.
    const auto bits = static_cast<std::uint64_t>(number);
    if (!(begin(name) && (!negative || put("-")) && put(negative ? 0 - bits : bits)))
        size_ = start;
    return *this;
}

Line& Line::field(const char* name, std::string_view text) noexcept {
    constexpr char kHex[] = "0123456789abcdef";
    const std::size_t start = size_;
    bool fits = begin(name) && put("\"");
    std::size_t n = 0;
    for (; fits && n < text.size() && n < kMaxText; ++n) {
        const char c = text[n];
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x20 || byte == 0x7f) {
            const char escaped[] = {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
            fits = put({escaped, sizeof escaped});
        } else {
            if (c == '"' || c == '\\') fits = put("\\");
            fits = fits && put({&c, 1});
        }
    }
    if (fits && n < text.size()) fits = put("...");
    if (!(fits && put("\""))) size_ = start;
    return *this;
}

Line& Line::duration(std::uint64_t start) noexcept {
    if (start == 0) return *this;  // the topic was off then
    const std::uint64_t now = now_ns();
    return field("us", static_cast<long long>(now > start ? (now - start) / 1000 : 0));
}

Line::~Line() {
    const unsigned missing = lost.exchange(0);
    if (missing != 0) field("lost", missing);
    buffer_[size_++] = '\n';
    const int fd = target.load();
    long written = -EBADF;
    if (!target_is_ours.load() || still_ours(fd)) {
        do written = raw::call(SYS_write, fd, raw::addr(buffer_), static_cast<long>(size_));
        while (written == -EINTR);
    }
    if (written < 0) lost.fetch_add(missing + 1);
}

}  // namespace forkfd::trace
