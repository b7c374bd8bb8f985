// The page of slots that processes share.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <stdexcept>

#include "core/page/shared_page.h"
#include "support.h"
#include "threads.h"

using namespace support;
using forkfd::PageHeader;
using forkfd::PageMapping;
using forkfd::PageSlot;
using forkfd::UniqueFd;

namespace {

std::string refusal(int fd) {
    try {
        const PageMapping mapping(fd);
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

// A page whose header has this number in this place.
UniqueFd changed(std::size_t at, std::uint32_t number) {
    UniqueFd page = forkfd::create_page(3);
    CHECK_EQ(::pwrite(page.get(), &number, sizeof number, static_cast<off_t>(at)),
             static_cast<ssize_t>(sizeof number));
    return page;
}

}  // namespace

TEST(a_slot_is_a_cache_line_of_words_in_this_order) {
    CHECK_EQ(sizeof(PageSlot), 64U);
    CHECK_EQ(alignof(PageSlot), 64U);
    const std::size_t places[] = {
        offsetof(PageSlot, requests),    offsetof(PageSlot, errors),
        offsetof(PageSlot, in_flight),   offsetof(PageSlot, beat_ns),
        offsetof(PageSlot, deadline_ns), offsetof(PageSlot, ready_ns),
        offsetof(PageSlot, worker),      offsetof(PageSlot, generation)};
    for (std::size_t i = 0; i < std::size(places); ++i) CHECK_EQ(places[i], 8 * i);
    CHECK_EQ(offsetof(PageHeader, version), 16U);
    CHECK_EQ(offsetof(PageHeader, generation), 32U);
    const UniqueFd page = forkfd::create_page(5);
    const PageMapping mapping(page.get());
    for (std::uint32_t i = 0; i < 5; ++i)
        CHECK_EQ(reinterpret_cast<std::uintptr_t>(&mapping.slot(i)) % 64, 0U);
}

TEST(all_that_a_child_counts_its_parent_reads) {
    const UniqueFd page = forkfd::create_page(2);
    const PageMapping mapping(page.get());
    PageSlot& slot = mapping.slot(1);
    slot.claim(7, 3);
    const std::uint64_t begun = forkfd::monotonic_ns();
    const pid_t pid = ::fork();
    if (pid == 0) {
        const PageMapping own(page.get());
        PageSlot& same = own.slot(1);
        same.beat();
        same.add(5, 2);
        same.begin();
        same.begin();
        same.end(1);
        same.set_ready(true);
        same.deadline_ns = 99;
        ::_exit(0);
    }
    int status = -1;
    CHECK_EQ(::waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    CHECK_EQ(slot.requests.load(), 6U);
    CHECK_EQ(slot.errors.load(), 3U);
    CHECK_EQ(slot.in_flight.load(), 1U);
    CHECK(slot.beat_ns >= begun && slot.beat_ns <= forkfd::monotonic_ns());
    CHECK(slot.ready_ns >= slot.beat_ns);
    CHECK_EQ(slot.deadline_ns.load(), 99U);
    CHECK_EQ(slot.worker.load(), 7U);
    CHECK_EQ(slot.generation.load(), 3U);
    CHECK_EQ(mapping.slot(0).requests.load(), 0U);
    slot.claim(8, 4);
    CHECK_EQ(slot.requests + slot.errors + slot.in_flight + slot.beat_ns + slot.ready_ns +
                 slot.deadline_ns,
             0U);
}

TEST(threads_of_a_worker_lose_no_count) {
    const UniqueFd page = forkfd::create_page(1);
    const PageMapping mapping(page.get());
    const std::uint64_t rounds = emulated() ? 1000 : 300000;
    std::atomic<int> waiting{4};
    Threads threads;
    for (int i = 0; i < 4; ++i)
        threads.start([&] {
            for (--waiting; waiting > 0;) std::this_thread::yield();  // all at once
            for (std::uint64_t n = 0; n < rounds; ++n) {
                mapping.slot(0).begin();
                mapping.slot(0).beat();
                mapping.slot(0).end(1);
            }
        });
    threads.join();
    CHECK_EQ(mapping.slot(0).requests.load(), 4 * rounds);
    CHECK_EQ(mapping.slot(0).errors.load(), 4 * rounds);
    CHECK_EQ(mapping.slot(0).in_flight.load(), 0U);
}

TEST(its_size_is_for_good_and_exec_closes_it) {
    const UniqueFd page = forkfd::create_page(3);
    CHECK_EQ(::fcntl(page.get(), F_GETFD), FD_CLOEXEC);
    struct stat info;
    CHECK_EQ(::fstat(page.get(), &info), 0);
    CHECK_EQ(info.st_size, 64 * 4);
    for (const off_t size : {0, 64 * 3, 64 * 5}) {
        CHECK_EQ(::ftruncate(page.get(), size), -1);
        CHECK_EQ(errno, EPERM);
    }
    CHECK_EQ(::fcntl(page.get(), 1024 + 9, 0x8), -1);  // nor can writing be forbidden
    CHECK_EQ(errno, EPERM);
}

TEST(the_mapping_outlives_the_descriptor) {
    UniqueFd page = forkfd::create_page(1);
    const PageMapping mapping(page.get());
    page.reset();
    mapping.slot(0).add(1, 0);
    CHECK_EQ(mapping.slot(0).requests.load(), 1U);
}

TEST(what_is_no_page_is_said) {
    int ends[2];
    CHECK_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const UniqueFd reader(ends[0]), writer(ends[1]);
    CHECK(has(refusal(reader.get()), "is no memfd"));
    const UniqueFd loose(::memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    CHECK(has(refusal(loose.get()), "may shrink"));
    CHECK_EQ(::fcntl(loose.get(), 1024 + 9, 0x2), 0);
    CHECK(has(refusal(loose.get()), "no page of slots"));
    CHECK(has(refusal(changed(0, 1).get()), "no page of slots"));
    CHECK(has(refusal(changed(16, 2).get()), "version 2; this program knows version 1"));
    CHECK(has(refusal(changed(20, 128).get()), "3 slots of 128 bytes in 256 bytes"));
    CHECK(has(refusal(changed(24, 4).get()), "4 slots of 64 bytes in 256 bytes"));
    CHECK(has(refusal(changed(24, 0).get()), "damaged"));
    CHECK(has(refusal(changed(24, 0xffffffff).get()), "damaged"));
    bool closed = false;
    try {
        const PageMapping mapping(4095);
    } catch (const std::system_error& error) {
        closed = error.code().value() == EBADF;
    }
    CHECK(closed);
}

TEST(a_page_has_some_slots_and_not_too_many) {
    for (const std::uint32_t slots : {0U, forkfd::kMaxSlots + 1}) {
        bool refused = false;
        try {
            forkfd::create_page(slots);
        } catch (const std::invalid_argument&) {
            refused = true;
        }
        CHECK(refused);
    }
    CHECK_EQ(PageMapping(forkfd::create_page(forkfd::kMaxSlots).get()).size(), forkfd::kMaxSlots);
}

int main(int argc, char** argv) {
    if (const auto code = helper(argc, argv)) return *code;
    return check::run(argc, argv);
}
