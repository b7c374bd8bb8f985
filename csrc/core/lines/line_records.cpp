#include "core/lines/line_records.h"

#include <algorithm>
#include <cstring>

namespace forkfd {
namespace {

constexpr std::uint64_t kOnes = 0x0101010101010101;
constexpr std::uint64_t kHighs = kOnes * 0x80;
constexpr std::size_t kWord = sizeof(std::uint64_t);

constexpr std::uint64_t has_zero(std::uint64_t word) noexcept {
    return (word - kOnes) & ~word & kHighs;
}

// Whether one of eight bytes is not itself in a record, or not printable ASCII.
bool has_special(std::uint64_t word) noexcept {
    const std::uint64_t below_space = (word - kOnes * 0x20) & ~word & kHighs;
    return ((word & kHighs) | below_space | has_zero(word ^ kOnes * '"') |
            has_zero(word ^ kOnes * '\\') | has_zero(word ^ kOnes * 0x7f)) != 0;
}

bool is_special(unsigned char byte) noexcept {
    return byte < 0x20 || byte >= 0x7f || byte == '"' || byte == '\\';
}

// How many bytes at the beginning of text are themselves in a record.
std::size_t plain_length(std::string_view text) noexcept {
    std::size_t at = 0;
    for (; at + kWord <= text.size(); at += kWord) {
        std::uint64_t word;
        std::memcpy(&word, text.data() + at, kWord);
        if (has_special(word)) break;
    }
    while (at < text.size() && !is_special(static_cast<unsigned char>(text[at]))) ++at;
    return at;
}

void append_hex(std::string& out, const char* prefix, unsigned char byte) {
    static const char digits[] = "0123456789abcdef";
    out += prefix;
    out += digits[byte >> 4];
    out += digits[byte & 15];
}

// Append the first character of text, a special one; return its length.
std::size_t append_special(std::string& out, std::string_view text) {
    const auto byte = static_cast<unsigned char>(text[0]);
    if (byte >= 0x80) {
        const std::size_t length = utf8_length(text);
        if (length == 0) {
            append_hex(out, "\\\\x", byte);  // the text is \xNN, and JSON doubles its backslash
            return 1;
        }
        out.append(text.data(), length);
        return length;
    }
    switch (byte) {
        case '"': out += "\\\""; break;
        case '\\': out += "\\\\"; break;
        case '\b': out += "\\b"; break;
        case '\f': out += "\\f"; break;
        case '\n': out += "\\n"; break;
        case '\r': out += "\\r"; break;
        case '\t': out += "\\t"; break;
        case 0x7f: out += '\x7f'; break;
        default: append_hex(out, "\\u00", byte);
    }
    return 1;
}

// Append a message; return whether all of it is plain.
bool append_message(std::string& out, std::string_view text) {
    const std::size_t first = plain_length(text);
    out.append(text.data(), first);
    if (first == text.size()) return true;
    text.remove_prefix(first);
    while (!text.empty()) {
        text.remove_prefix(append_special(out, text));
        const std::size_t plain = plain_length(text);
        out.append(text.data(), plain);
        text.remove_prefix(plain);
    }
    return false;
}

void append_record(LineRecords& records, std::string_view text, std::uint64_t length,
                   std::string_view head) {
    const bool is_cut = length > text.size();
    if (!text.empty() && text.back() == '\r') text.remove_suffix(1);
    std::string& out = records.data;
    out += head;
    if (is_cut) {
        out += ",\"cut\":";
        out += std::to_string(length);
    }
    out += ",\"message\":\"";
    const bool is_plain = append_message(out, text);
    out += "\"}\n";
    ++records.count;
    records.cut += is_cut;
    records.is_plain = records.is_plain && is_plain && !is_cut;
}

void extend(UnfinishedLine& line, std::string_view piece, std::size_t max_line) {
    line.length += piece.size();
    line.part += piece.substr(0, max_line - std::min(max_line, line.part.size()));
}

bool is_continuation(std::string_view text, std::size_t at) noexcept {
    return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80;
}

}  // namespace

std::size_t utf8_length(std::string_view text) noexcept {
    const auto first = static_cast<unsigned char>(text[0]);
    if (first < 0x80) return 1;
    if (!is_continuation(text, 1)) return 0;
    const auto second = static_cast<unsigned char>(text[1]);
    if (first >= 0xc2 && first <= 0xdf) return 2;
    if (first >= 0xe0 && first <= 0xef) {
        // Not longer than necessary, and no surrogate.
        if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f)) return 0;
        return is_continuation(text, 2) ? 3 : 0;
    }
    if (first >= 0xf0 && first <= 0xf4) {
        if ((first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f)) return 0;
        return is_continuation(text, 2) && is_continuation(text, 3) ? 4 : 0;
    }
    return 0;
}

LineRecords record_lines(std::string_view data, UnfinishedLine& unfinished, std::string_view head,
                         std::size_t max_line) {
    LineRecords records;
    while (true) {
        const std::size_t end = data.find('\n');
        if (end == std::string_view::npos) break;
        if (records.count == 0) {
            // For lines of this length, or growing would copy everything several times; a short
            // first line is no measure of the others.
            const std::size_t lines = data.size() / std::max<std::size_t>(end + 1, 64) + 1;
            records.data.reserve(data.size() + lines * (head.size() + 16));
        }
        const std::string_view line = data.substr(0, end);
        if (unfinished.length == 0) {
            append_record(records, line.substr(0, max_line), line.size(), head);
        } else {
            extend(unfinished, line, max_line);
            append_record(records, unfinished.part, unfinished.length, head);
            unfinished = {};
        }
        data.remove_prefix(end + 1);
    }
    extend(unfinished, data, max_line);
    return records;
}

}  // namespace forkfd
