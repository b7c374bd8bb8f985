"""Records: one line each, whole or marked as cut, decoded as they were encoded."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyforkfd.supervisor.logs._records import (
    MAX_LINE,
    Origin,
    attribute,
    captured,
    decode,
    encode,
    time_ns,
    time_text,
)

WEB = Origin(component="web", worker=12, generation=4)
NOW = 1_700_000_000_123_456_789


def head(**more: Any) -> dict[str, Any]:
    return {"time": time_text(NOW), "seq": 1, "level": "INFO", **WEB.fields(), "pid": 7, **more}


# Every character, lone surrogates too: any of them may come out of a file name.
texts = st.text(st.characters())
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(texts | st.integers() | st.tuples(), inner),
    max_leaves=5,
)


@given(texts, texts, st.dictionaries(texts, values, max_size=3), st.integers(1024, 2048))
def test_any_message_is_one_line_of_valid_json(
    message: str, exception: str, extra: dict[str, Any], limit: int
) -> None:
    line = encode(head(), message, exception=exception, extra=extra, limit=limit)
    assert line.endswith(b"\n") and line.count(b"\n") == 1 and len(line) <= limit
    body = json.loads(line, parse_constant=pytest.fail)
    if "cut" not in body:
        assert body["message"] == message
        assert body.get("exception", "") == exception
    assert {k: body[k] for k in head()} == head()


@given(texts, st.integers(1024, 4096))
def test_a_record_is_cut_only_when_it_is_too_long_and_has_its_full_length(
    piece: str, limit: int
) -> None:
    message = (piece or "x") * (limit // max(len(piece), 1))
    whole = encode(head(), message, limit=10**9)
    line = encode(head(), message, limit=limit)
    body = json.loads(line)
    if len(whole) <= limit:
        assert line == whole
        return
    assert body["cut"] == len(whole)
    assert message.startswith(body["message"])
    assert len(line) > limit - 100  # the space is used: a character takes 12 bytes at most


def test_of_a_long_traceback_the_end_stays_and_of_a_long_message_the_beginning() -> None:
    line = encode(head(), "first " * 999, exception="frame\n" * 999 + "ValueError: 7", limit=2000)
    body = json.loads(line)
    assert body["message"].startswith("first first")
    assert body["exception"].endswith("frame\nValueError: 7")
    assert len(line) <= 2000


def test_a_field_of_the_application_never_replaces_a_reserved_one() -> None:
    body = json.loads(encode(head(), "hello", extra={"pid": 0, "message": "other", "user": 5}))
    assert (body["pid"], body["message"]) == (7, "hello")
    assert (body["pid_"], body["message_"], body["user"]) == (0, "other", 5)


def test_a_value_that_json_cannot_hold_becomes_its_repr() -> None:
    loop: list[Any] = []
    loop.append(loop)
    body = json.loads(encode(head(), "m", extra={"o": 1j, "nan": float("nan"), "loop": loop}))
    assert (body["o"], body["nan"], body["loop"]) == ("1j", "nan", "[[...]]")


@given(st.integers(0, 4_000_000_000 * 10**9))
def test_time_is_utc_with_all_its_nanoseconds(ns: int) -> None:
    assert time_ns(time_text(ns)) == ns


def test_time_as_text() -> None:
    assert time_text(NOW) == "2023-11-14T22:13:20.123456789Z"
    assert time_text(5) < time_text(10) < time_text(NOW)
    for wrong in ("", "2023-11-14T22:13:20Z", "2023-11-14 22:13:20.123456789Z", "x" * 30):
        with pytest.raises(ValueError):
            time_ns(wrong)


def test_an_entry_is_what_was_written() -> None:
    entry = decode(encode(head(), "hello").removesuffix(b"\n"))
    assert entry is not None
    assert (entry.time, entry.origin, entry.stream, entry.level) == (NOW, WEB, "log", "INFO")


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"hello", b"7", b"[]", b"{}", b"\xff", b"[" * 100_000),
        b'{"component":"a"}',
        b'{"component":"a","time":5}',
        b'{"component":"a","time":"now"}',
    ],
)
def test_a_line_that_is_not_a_record_decodes_to_none(line: bytes) -> None:
    assert decode(line) is None


@given(st.binary().filter(lambda b: b"\n" not in b))
def test_a_captured_line_is_an_entry_whatever_its_bytes(text: bytes) -> None:
    entry = captured(WEB, "stderr", NOW, text)
    assert decode(entry.line) == entry
    assert json.loads(entry.line)["message"] == text.decode("utf-8", "backslashreplace")


@given(st.text(), st.text(), st.dictionaries(st.text(), st.text() | st.integers()))
def test_a_true_record_stays_as_its_worker_wrote_it(
    message: str, exception: str, extra: dict[str, Any]
) -> None:
    line = encode(head(), message, exception=exception, extra=extra)[:-1]
    entry = attribute(line, WEB)
    assert entry is not None and entry == decode(line)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("component", "supervisor"),
        ("worker", 3),
        ("worker", [12]),
        ("generation", "4"),
        ("stream", "stdout"),
        ("pid", "1"),
        ("lost", [1]),
    ],
)
def test_what_a_record_claims_is_not_what_it_is(name: str, value: object) -> None:
    line = json.dumps({**head(), "message": "m", name: value}).encode()
    entry = attribute(line, WEB)
    assert entry is not None
    assert (entry.origin, entry.stream, entry.lost) == (WEB, "log", 0)
    body = json.loads(entry.line)
    assert body["claimed"] == {name: value} and "stream" not in body
    assert {**head(), **body}.items() >= WEB.fields().items()
    assert decode(entry.line) == entry


def test_a_field_that_occurs_twice_occurs_once() -> None:
    """Which of two counts, differs from reader to reader."""
    line = encode(head(), "m")[:-2] + b',"component":"supervisor","component":"web","worker":12}'
    entry = attribute(line, WEB)
    assert entry is not None and entry.line == encode(head(), "m")[:-1]


def test_a_record_that_is_too_long_is_cut_under_its_origin() -> None:
    line = json.dumps({**head(), "worker": 1, "message": "x" * 10 * MAX_LINE}).encode()
    entry = attribute(line, WEB)
    assert entry is not None and len(entry.line) < MAX_LINE
    assert json.loads(entry.line)["worker"] == 12


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists), st.text())
def test_whatever_a_worker_writes_its_record_is_one_line_of_its_own(
    value: object, name: str
) -> None:
    line = json.dumps({**head(), "message": value, name: value}).encode()
    if (entry := attribute(line, WEB)) is not None:
        assert entry.origin == WEB and b"\n" not in entry.line
        assert json.loads(entry.line).items() >= WEB.fields().items()


def test_what_is_no_record_is_attributed_to_nobody() -> None:
    assert attribute(b"print", WEB) is None
