// Threads of a test.
#pragma once

#include <sys/types.h>

#include <exception>
#include <fstream>
#include <iterator>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace support {

// Threads whose first failure is thrown by join().
class Threads {
  public:
    template <class Body>
    void start(Body body) {
        threads_.emplace_back([this, body] {
            try {
                body();
            } catch (...) {
                const std::lock_guard<std::mutex> lock(mutex_);
                if (!failure_) failure_ = std::current_exception();
            }
        });
    }
    void join() {
        for (std::thread& t : threads_) t.join();
        threads_.clear();
        if (failure_) std::rethrow_exception(failure_);
    }
    ~Threads() {
        for (std::thread& t : threads_) t.join();
    }

  private:
    std::mutex mutex_;
    std::exception_ptr failure_;
    std::vector<std::thread> threads_;
};

inline std::string first_word_after(const std::string& path, const std::string& mark) {
    std::ifstream in(path);
    std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    const std::size_t at = text.find(mark);
    return at == std::string::npos ? "" : text.substr(at + mark.size(), 1);
}

// Until the thread sleeps in the kernel.
inline void wait_until_asleep(pid_t tid) {
    const std::string path = "/proc/self/task/" + std::to_string(tid) + "/stat";
    while (first_word_after(path, ") ") != "S") std::this_thread::yield();
}

}  // namespace support
