"""Captured lines: made into records natively, and passed on together."""

import itertools
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyforkfd import _core
from pyforkfd.supervisor._reactor import Reactor
from pyforkfd.supervisor.logs import _output
from pyforkfd.supervisor.logs._capture import Capture
from pyforkfd.supervisor.logs._lines import Lines
from pyforkfd.supervisor.logs._log_file import LogFile
from pyforkfd.supervisor.logs._logs import Logs
from pyforkfd.supervisor.logs._output import Output
from pyforkfd.supervisor.logs._records import Entry, Origin, captured, captured_head
from pyforkfd.supervisor.logs._sinks import RingTail, StreamSink, as_text, lines_as_text
from pyforkfd.supervisor.spec._spec import Log
from pyforkfd.supervisor.succession._succession import Succession

WEB = Origin(component='w"eb\u00e9', worker=12, generation=4)
NOW = 1_700_000_000_123_456_789
# Bytes that mean something: to JSON, to UTF-8, to a line, to a terminal; and any others.
PIECES = st.one_of(
    st.binary(max_size=12),
    st.text(max_size=6).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([b"\n", b"\r\n", b"\r", b'"', b"\\", b"\x00", b"\x1b[2J", b"\x7f", b"\t"]),
    st.sampled_from([b"\xe2\x82", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff"]),
    st.just(b"plain text, longer than a word" * 3),
)
DATA = st.lists(PIECES, max_size=40).map(b"".join)


def reference(data: bytes, max_line: int) -> list[tuple[Entry, int]]:
    """Return the entries of the whole lines, each with its line's length, as Python makes them."""
    found = []
    for line in data.split(b"\n")[:-1]:
        cut = len(line) if len(line) > max_line else 0
        text = line[:max_line].removesuffix(b"\r")
        found.append((captured(WEB, "stdout", NOW, text, cut=cut), len(line)))
    return found


def split(data: bytes, places: list[int]) -> Iterator[bytes]:
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    for begin, end in itertools.pairwise(ends):
        yield data[begin:end]


def lines_of(data: bytes, max_line: int = 1 << 14) -> Lines | None:
    head = captured_head(WEB, "stdout", NOW)
    records, count, _, is_plain, _, _ = _core.record_lines(data, b"", 0, head, max_line)
    if not count:
        return None
    return Lines(
        time=NOW,
        origin=WEB,
        stream="stdout",
        head=head,
        data=records,
        count=count,
        is_plain=is_plain,
    )


def some_lines(*texts: str) -> Lines:
    lines = lines_of("".join(f"{text}\n" for text in texts).encode())
    assert lines is not None
    return lines


@given(DATA, st.lists(st.integers(0, 400), max_size=6), st.integers(1, 60))
@example(b"x" * 100_000 + b"\r\n" + b"\xff" * 5000 + b"\n\n", [7, 16, 99_999, 100_001], 16_384)
@example(b"ab\r\n", [1, 2, 3], 2)
def test_native_records_are_those_of_python(data: bytes, places: list[int], most: int) -> None:
    head = captured_head(WEB, "stdout", NOW)
    part, length = b"", 0
    records, total, total_cut = b"", 0, 0
    for piece in split(data, places):
        made, count, cut, _, part, length = _core.record_lines(piece, part, length, head, most)
        records, total, total_cut = records + made, total + count, total_cut + cut
    expected = reference(data, most)
    assert records == b"".join(entry.line + b"\n" for entry, _ in expected)
    assert total == len(expected)
    assert total_cut == sum(length > most for _, length in expected)
    rest = data.rsplit(b"\n", 1)[-1]
    assert (part, length) == (rest[:most], len(rest))


def test_every_sequence_of_three_bytes_that_utf8_may_begin() -> None:
    firsts, others = range(0x7F, 0x100), (0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0)
    data = b"".join(
        bytes([first, second, third, fourth, 10])
        for first in firsts
        for second in others
        for third in others
        for fourth in (0x41, 0x80, 0xBF)
    )
    lines = lines_of(data)
    assert lines is not None
    assert [*lines.entries()] == [entry for entry, _ in reference(data, 1 << 14)]


@given(DATA, st.integers(1, 60))
def test_text_of_lines_is_that_of_their_entries(data: bytes, most: int) -> None:
    if (lines := lines_of(data, most)) is not None:
        expected = b"".join(as_text(entry) + b"\n" for entry in lines.entries())
        assert lines_as_text(lines) == expected
        messages = [json.loads(entry.line)["message"] for entry in lines.entries()]
        escaped = any('"' in text or "\\" in text for text in messages)
        cut = b'"cut":' in expected
        printable = all(text.isascii() and text.isprintable() for text in messages)
        assert not lines.is_plain or (printable and not escaped and not cut)


def test_lines_of_printable_text_are_plain() -> None:
    assert some_lines("GET /index.html 200 'ok' ~", "", "x" * 1000).is_plain


@given(st.lists(st.text("abc", max_size=9), min_size=1, max_size=12), st.integers(-5, 3000))
def test_parts_of_lines_are_the_lines(texts: list[str], size: int) -> None:
    lines = some_lines(*texts)
    first, rest = lines.split(size)
    parts = [first] if rest is None else [first, rest]
    assert [e for part in parts for e in part.entries()] == [*lines.entries()]
    assert [part.count for part in parts] == [len([*part.entries()]) for part in parts]
    if rest is not None:
        before = len(first.data) - len([*first.entries()][-1].line) - 1
        assert len(first.data) >= size and (before < size or first.count == 1)


@given(
    st.lists(
        st.one_of(st.text("abc", max_size=300), st.lists(st.text("abc", max_size=99), min_size=1)),
        max_size=12,
    ),
    st.integers(1, 9),
    st.integers(1, 2000),
)
@example(["", ["a", "", ""]], 3, 363)  # the bound falls between lines that came together
def test_the_tail_of_lines_is_that_of_their_entries(
    pieces: list[str | list[str]], keep: int, keep_bytes: int
) -> None:
    together, single = (RingTail(keep=keep, keep_bytes=keep_bytes) for _ in range(2))
    seen: list[Entry | Lines] = []
    added: list[Entry] = []
    together.follow(seen.append)
    for piece in pieces:
        lines = some_lines(*([piece] if isinstance(piece, str) else piece))
        for entry in lines.entries():
            single.add(entry)
            added.append(entry)
        if isinstance(piece, str):
            together.add(next(lines.entries()))
        else:
            together.add_lines(lines)
    assert together.tail() == single.tail()
    assert together.tail(2) == single.tail(2)
    assert b"\n".join(one.line for one in seen) == b"\n".join(entry.line for entry in added)
    for ring in together._rings.values():
        assert ring._count <= 2 * keep and ring._size <= 2 * (keep_bytes + 500), "bounded"


def test_a_slow_reader_of_a_flood_blocks_nothing() -> None:
    read, write = os.pipe()
    sink = StreamSink(write, max_bytes=50_000)
    pieces = [some_lines(*(f"{n} {number:0900}" for n in range(9))) for number in range(40)]
    for piece in pieces:
        sink.add_lines(piece)
    assert sink.wants_write and sink._bytes <= 50_000
    data = b""
    while sink.wants_write:
        data += os.read(read, 1 << 20)
        sink.handle()
    sink.close()
    os.close(write)
    with open(read, "rb") as rest:
        data += rest.read()
    got = data.splitlines()
    sent = [entry.line for piece in pieces for entry in piece.entries()]
    assert len(got) == sink.written == len(sent) - sink.dropped < len(sent)
    assert [line for line in sent if line in set(got)] == got, "whole lines, in order"
    assert got[-1] == sent[-1], "the oldest are dropped, not the newest"


def test_of_a_write_that_was_cut_short_the_lines_on_the_disk_are_not_lost(tmp_path: Path) -> None:
    lines = some_lines(*(str(n) for n in range(10)))
    file = LogFile(tmp_path / "app.log")
    logs = Logs(file, RingTail(), pid=os.getpid())
    length = len(lines.data) // 10
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * length + 5, hard))
    try:
        logs.add_lines(lines)
        assert file.lost == 6
        logs.add_lines(lines)
        assert file.lost == 16, "nor was their report written"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    logs.add_lines(lines)
    file.close()
    whole = (tmp_path / "app.log").read_bytes().split(b"\n")
    assert whole[:4] == lines.data.split(b"\n")[:4]
    assert json.loads(whole[5])["lost"] == 16, "behind the torn line"
    assert b"\n".join(whole[6:]) == lines.data
    assert len(logs.tail.tail(components=[WEB.component])) == 30, "sinks have them all"


def writes() -> int:
    """Return how many system calls of this process have written."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["syscw"])


def test_a_file_that_cannot_be_rotated_takes_the_lines_all_the_same(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "app.log", max_bytes=1000)
    logs = Logs(file, RingTail(), pid=os.getpid())
    (blocker := tmp_path / "app.log.next").mkdir()
    lines = some_lines(*(str(n) for n in range(100)))
    logs.add_lines(lines)
    before = writes()
    logs.add_lines(lines)
    assert writes() - before < 5, "together, though the file is full at each line"
    blocker.rmdir()
    assert file.turn == 0 and file.lost == 0
    on_disk = [json.loads(line) for line in file.path.read_bytes().splitlines()]
    assert [r["message"] for r in on_disk if r["component"] == WEB.component] == [
        str(n) for n in range(100)
    ] * 2
    assert sum(r["component"] == "supervisor" for r in on_disk) == 1, "one report of it"
    file.close()


def test_short_lines_are_read_by_less_at_once() -> None:
    counts: list[int] = []

    def take(lines: Lines) -> None:
        counts.append(lines.count)

    capture = Capture(WEB, "stdout", lambda entry: None, publish_lines=take)
    os.write(capture.writer.fileno(), b"\n" * 65536)
    while capture.handle():
        pass
    assert sum(counts) == 65536 and max(counts) == 4096
    capture.close()


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Output, Reactor]]:
    with (
        Reactor() as reactor,
        Succession() as succession,
        Output(Log(stdout=False), reactor, succession) as output,
    ):
        monkeypatch.setattr(_output, "_SLICE", 1e-9)  # of a stream in a turn of the loop
        yield output, reactor


def test_streams_that_flood_take_turns(output: tuple[Output, Reactor]) -> None:
    out, reactor = output
    captures = [
        out.capture(Origin(component=f"c{number}", worker=number), "stdout") for number in range(3)
    ]
    for capture in captures:
        os.set_blocking(capture.writer.fileno(), False)
    flood = b"x" * 99 + b"\n"
    seen: list[str] = []
    out.tail.follow(lambda lines: seen.append(lines.origin.component))
    for _ in range(6):
        for capture in captures:
            try:
                while os.write(capture.writer.fileno(), flood * 40):
                    pass
            except BlockingIOError:
                pass
        reactor.run_once(0)
        before = len(seen)
        out.read()
        assert len(set(seen[before:])) == 1, "one of them in a turn: the slice is over"
    order = list(dict.fromkeys(seen))
    assert sorted(order) == ["c0", "c1", "c2"]
    turns = [name for at, name in enumerate(seen) if at == 0 or seen[at - 1] != name]
    assert turns == order * 2
    for capture in captures:
        capture.writer.close()


def test_a_stream_that_has_ended_is_not_read_again(output: tuple[Output, Reactor]) -> None:
    out, reactor = output
    one, two = (out.capture(Origin(component="c", worker=n), "stdout") for n in (1, 2))
    for capture in (one, two):
        os.write(capture.writer.fileno(), b"last words")
        capture.writer.close()
    reactor.run_once(0)
    for entry in (out.last_lines("c", 1), out.last_lines("c", 2)):
        assert json.loads(entry[0])["message"] == "last words"
    assert one.ended and two.ended
    assert not out._readable, "a new stream may get the number of one that has ended"
    out.read()
    assert out.poll(0) is None
