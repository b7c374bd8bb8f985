// Captured output as log records: bytes in, one line of JSON for each line out.
//
// The records are those of captured() in pyforkfd/supervisor/logs/_records.py, byte for byte; that
// one says what a record is, and a test compares the two on random bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace forkfd {

// The line at the end of a read, whose newline is still to come.
struct UnfinishedLine {
    std::string part;          // its beginning, as much as is retained
    std::uint64_t length = 0;  // of all that was read of it, in bytes
};

struct LineRecords {
    std::string data;  // the records, each with its newline
    std::size_t count = 0;
    std::size_t cut = 0;   // how many were longer than is retained
    bool is_plain = true;  // every message is printable ASCII without escapes, and none was cut
};

// Make a record of each whole line in data.  head is the beginning of every record, up to its
// message; max_line is how many bytes of a line are retained.
LineRecords record_lines(std::string_view data, UnfinishedLine& unfinished, std::string_view head,
                         std::size_t max_line);

// The length of the UTF-8 sequence at the beginning of text, which is not empty, as Python decodes
// it; 0: there is none.
std::size_t utf8_length(std::string_view text) noexcept;

}  // namespace forkfd
