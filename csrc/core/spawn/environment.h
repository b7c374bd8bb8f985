// The child's environment as the array that execve takes.
#pragma once

#include <string>
#include <vector>

namespace forkfd {

class Environment {
  public:
    // A copy of the C environment: another thread may call setenv() while the child reads it.
    static Environment current();
    explicit Environment(const std::vector<std::string>& entries);

    // Replaces the LISTEN_ variables, and adds slots for those that the child writes.
    void set_listen(const std::vector<std::string>& names, bool with_pidfdid);

    char* const* data();  // valid until the object changes
    char* listen_pid() noexcept { return pid_slot_; }
    char* listen_pidfdid() noexcept { return pidfdid_slot_; }

  private:
    Environment() = default;
    void add(const char* entry, std::size_t length);

    std::string bytes_;  // entries one after the other, each with its NUL
    std::vector<std::size_t> offsets_;
    std::vector<char*> pointers_;
    std::size_t pid_offset_ = 0, pidfdid_offset_ = 0;
    char* pid_slot_ = nullptr;
    char* pidfdid_slot_ = nullptr;
};

}  // namespace forkfd
