#include "core/spawn/environment.h"

#include <unistd.h>

#include <cstring>

namespace forkfd {

namespace {

constexpr std::size_t kSlot = 21;  // digits of a 64-bit number and NUL

bool is_listen_name(const char* entry) noexcept {
    for (const char* name : {"LISTEN_PID=", "LISTEN_PIDFDID=", "LISTEN_FDS=", "LISTEN_FDNAMES="})
        if (std::strncmp(entry, name, std::strlen(name)) == 0) return true;
    return false;
}

}  // namespace

void Environment::add(const char* entry, std::size_t length) {
    offsets_.push_back(bytes_.size());
    bytes_.append(entry, length).push_back('\0');
}

Environment Environment::current() {
    Environment e;
    for (char* const* p = environ; p != nullptr && *p != nullptr; ++p) e.add(*p, std::strlen(*p));
    return e;
}

Environment::Environment(const std::vector<std::string>& entries) {
    for (const std::string& entry : entries) add(entry.data(), entry.size());
}

void Environment::set_listen(const std::vector<std::string>& names, bool with_pidfdid) {
    std::vector<std::size_t> others;
    for (std::size_t offset : offsets_)
        if (!is_listen_name(bytes_.data() + offset)) others.push_back(offset);
    offsets_.swap(others);

    std::string joined = "LISTEN_FDNAMES=";
    for (std::size_t i = 0; i < names.size(); ++i) joined += (i == 0 ? "" : ":") + names[i];
    const std::string count = "LISTEN_FDS=" + std::to_string(names.size());
    add(count.data(), count.size());
    add(joined.data(), joined.size());

    const auto slot = [this](const std::string& name) {
        const std::size_t at = bytes_.size() + name.size();
        const std::string entry = name + std::string(kSlot, '\0');
        add(entry.data(), entry.size());
        return at;
    };
    pid_offset_ = slot("LISTEN_PID=");
    if (with_pidfdid) pidfdid_offset_ = slot("LISTEN_PIDFDID=");
}

char* const* Environment::data() {
    pointers_.clear();
    for (std::size_t offset : offsets_) pointers_.push_back(bytes_.data() + offset);
    pointers_.push_back(nullptr);
    if (pid_offset_ != 0) pid_slot_ = bytes_.data() + pid_offset_;
    if (pidfdid_offset_ != 0) pidfdid_slot_ = bytes_.data() + pidfdid_offset_;
    return pointers_.data();
}

}  // namespace forkfd
