// A minimal test framework: TEST() registers, CHECK() stays under NDEBUG and prints both
// values.  Around each test the map of descriptors, the children and the signal
// mask must be as they were, so that a leak is named by the test that made it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace check {

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct Skip : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Test {
    Test(const char* name, void (*body)());
    const char* name;
    void (*body)();
    Test* next;
};

[[noreturn]] void fail(const char* file, int line, const std::string& what);

template <class A, class B>
void equal(const A& a, const B& b, const char* text, const char* file, int line) {
    if (a == b) return;
    std::ostringstream out;
    out << text << ": " << a << " is not " << b;
    fail(file, line, out.str());
}

// Runs all tests, or the one named by the first argument; the exit status of main().
int run(int argc, char** argv);

}  // namespace check

#define CHECK(condition)                                                  \
    do {                                                                  \
        if (!(condition)) check::fail(__FILE__, __LINE__, #condition);    \
    } while (false)
#define CHECK_EQ(a, b) check::equal(a, b, #a " == " #b, __FILE__, __LINE__)
#define TEST(name)                                    \
    static void name();                               \
    static const check::Test name##_test(#name, name); \
    static void name()
