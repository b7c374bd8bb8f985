"""FORKFD_WORKER and the messages, written and read by both ends."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyforkfd as ff
from pyforkfd.supervisor.health import _memory_guard
from pyforkfd.supervisor.state import _events
from pyforkfd.supervisor.worker import _messages as m
from pyforkfd.supervisor.worker._identity import Identity, identify
from pyforkfd.supervisor.worker._protocol import (
    MAX_MESSAGE,
    VERSION,
    ProtocolError,
    decode_event,
    decode_order,
    encode_event,
    encode_order,
    order,
    order_name,
)

WHO = "component=web worker=12 position=2 generation=4"


def test_everything_is_there() -> None:
    who = identify(f"{WHO} channel=6 page=5 slot=3 log=7 listen=http:8,keys.v2:9")
    assert (who.component, who.worker_id, who.position, who.generation) == ("web", 12, 2, 4)
    assert (who.channel, who.page, who.slot, who.log) == (6, 5, 3, 7)
    assert who.listen == {"http": 8, "keys.v2": 9} and not who.by_channel


def test_what_may_be_absent_is_none() -> None:
    who = identify(WHO)
    assert (who.channel, who.page, who.slot, who.log, who.listen) == (None, None, None, None, {})


def test_listeners_by_channel() -> None:
    who = identify(f"{WHO} listen=channel")
    assert who.by_channel and who.listen == {}


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("worker=1", "component"),
        (f"{WHO} channel=x", "'x'"),
        (f"{WHO} listen=http:", "''"),
        (f"{WHO} channel=-1", "'-1' is out of range"),
        (f"{WHO} channel={10**20}", "out of range"),
        (f"{WHO} channel=" + "1" * 5000, "limit"),
    ],
)
def test_nonsense_is_named(text: str, missing: str) -> None:
    with pytest.raises(ValueError, match=f"FORKFD_WORKER=.*{missing}"):
        identify(text)


NUMBERS = st.none() | st.integers(0, 1 << 31)
NAMES = st.text("abc-_.09", min_size=1)


@given(
    component=NAMES,
    ids=st.tuples(*[st.integers(0, 1 << 40)] * 3),
    numbers=st.tuples(*[NUMBERS] * 4),
    listen=st.dictionaries(NAMES, st.integers(0, 1 << 31)) | st.none(),
)
def test_what_is_written_is_read(
    component: str,
    ids: tuple[int, ...],
    numbers: tuple[int | None, ...],
    listen: dict[str, int] | None,
) -> None:
    identity = Identity(
        component=component,
        worker_id=ids[0],
        position=ids[1],
        generation=ids[2],
        channel=numbers[0],
        page=numbers[1],
        slot=numbers[2],
        log=numbers[3],
        listen=listen or {},
        by_channel=listen is None,
    )
    assert identify(identity.encode()) == identity
    assert f" version={VERSION}" in identity.encode()


def test_a_supervisor_of_another_version_is_named() -> None:
    with pytest.raises(ValueError, match=r"FORKFD_WORKER: .*version 2.*this end 1: .*the same"):
        identify(f"{WHO} version=2")


# Messages


def null() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def received(data: bytes, *fds: ff.Fd) -> ff.Received:
    return ff.Received(data=data, fds=fds, flags=0, credentials=None, pidfd=None)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
COUNTS = st.integers(0, (1 << 63) - 1)
NAME = st.text(st.characters(exclude_categories=["Cs"]))
LINES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=900)
MADE: dict[type, st.SearchStrategy[Any]] = {
    m.SwitchLog: st.builds(m.SwitchLog, COUNTS),
    m.LogSwitched: st.builds(m.LogSwitched, COUNTS),
    m.Peer: st.builds(m.Peer, NAME, COUNTS),
    m.Message: st.builds(m.Message, JSON),
    m.Status: st.builds(m.Status, LINES),
}
ORDERS: tuple[type[m.OrderMessage], ...] = get_args(m.OrderMessage)
EVENTS: tuple[type[m.EventMessage], ...] = get_args(m.EventMessage)
FIELDLESS = [kind for kind in (*ORDERS, *EVENTS) if not fields(kind)]
MADE |= {kind: st.builds(kind) for kind in FIELDLESS}


def test_every_message_is_tested() -> None:
    assert MADE.keys() == {*ORDERS, *EVENTS}


@given(message=st.sampled_from(ORDERS).flatmap(lambda kind: MADE[kind]))
def test_an_order_is_read_as_it_was_written(message: m.OrderMessage) -> None:
    name = ["log"] if isinstance(message, m.SwitchLog) else []
    with ff.Fd(null()) as fd:
        arrived = received(encode_order(message, name), *[fd] * len(name))
        typed, public = decode_order(arrived)
    assert typed == message
    assert public.name == order_name(message) == public.body["order"]
    assert public.body["version"] == VERSION


@given(message=st.sampled_from(EVENTS).flatmap(lambda kind: MADE[kind]))
def test_an_event_is_read_as_it_was_written(message: m.EventMessage) -> None:
    data = encode_event(message)
    assert decode_event(received(data)) == message
    assert json.loads(data)["version"] == VERSION


def test_an_order_has_its_descriptors_by_name(other_fd: int) -> None:
    one, two = ff.FdChannel.pair()
    with one, two:
        one.send(b'{"order": "accept", "fds": ["web/1"]}', [other_fd])
        with two.recv() as message:
            typed, order = decode_order(message)
            assert typed == m.Accept()
            assert order.name == "accept" and list(order.fds) == ["web/1"]
            assert ff.same_open_file(order.fds["web/1"], other_fd)


DEEP = b"[" * 60_000
LONG = b'{"%s": "message", "data": ' + b"1" * 5000 + b"}"
MALFORMED: dict[str, tuple[bytes, str]] = {
    "no json": (b"no json", "not JSON"),
    "not UTF-8": (b'{"%s": "message", "data": "\xff"}', "not JSON"),
    "UTF-16": ('{"%s": "message", "data": 1}'.encode("utf-16"), "not JSON"),
    "byte order mark": (b'\xef\xbb\xbf{"%s": "message", "data": 1}', "not JSON"),
    "not an object": (b"[]", "not an object"),
    "a number": (b"1", "not an object"),
    "too deep": (DEEP, "not JSON"),
    "too deep within": (b'{"%s": ' + DEEP, "not JSON"),
    "5,000 digits": (LONG, "not JSON"),
    "NaN": (b'{"%s": "message", "data": NaN}', "not JSON"),
    "-Infinity": (b'{"%s": "message", "data": [-Infinity]}', "not JSON"),
    "infinite": (b'{"%s": "message", "data": 1e999}', "not JSON"),
    "no name": (b"{}", "unknown %s: None"),
    "a name that is no text": (b'{"%s": 1}', "unknown %s: 1"),
    "a name that is a list": (b'{"%s": []}', "unknown %s"),
    "a name that is a deep list": (b'{"%s": ' + b"[" * 500 + b"]" * 500 + b"}", "unknown %s"),
    "an unknown name": (b'{"%s": "dance"}', "unknown %s: 'dance'"),
    "a missing field": (b'{"%s": "log"}', "%s log: turn is missing"),
    "a text for a count": (b'{"%s": "log", "turn": "1"}', "%s log: turn='1' is not of type int"),
    "a truth value for a count": (b'{"%s": "log", "turn": true}', "turn=True"),
    "a float for a count": (b'{"%s": "log", "turn": 1.0}', "turn=1.0"),
    "a negative count": (b'{"%s": "log", "turn": -1}', "turn=-1"),
    "a huge count": (b'{"%s": "log", "turn": ' + b"9" * 4000 + b"}", "turn=999"),
    "another version": (b'{"%s": "message", "data": 1, "version": 2}', "version 2 .*this end 1"),
    "a version that is no number": (b'{"%s": "log", "version": [1]}', "version \\[1\\]"),
}


def malformed(key: str) -> list[Any]:
    keyed = {
        name: (data.replace(b"%s", key.encode()), why.replace("%s", key))
        for name, (data, why) in MALFORMED.items()
    }
    return [pytest.param(*case, id=name) for name, case in keyed.items()]


@pytest.mark.parametrize(("data", "why"), malformed("order"))
def test_what_is_no_order_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why) as caught:
        decode_order(received(data))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(("data", "why"), malformed("event"))
def test_what_is_no_event_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why) as caught:
        decode_event(received(data))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("data", "count", "why"),
    [
        (b'{"order": "drain"}', 1, "1 descriptors for \\[\\]"),
        (b'{"order": "drain", "fds": ["a"]}', 1, "1 descriptors: it has none"),
        (b'{"order": "accept", "fds": ["a", "b"]}', 1, "1 descriptors for \\['a', 'b'\\]"),
        (b'{"order": "accept", "fds": "a"}', 1, "1 descriptors for 'a'"),
        (b'{"order": "accept", "fds": [1]}', 1, "1 descriptors for \\[1\\]"),
        (b'{"order": "log", "turn": 1}', 0, "0 descriptors: it has one"),
        (b'{"order": "log", "turn": 1, "fds": ["a", "b"]}', 2, "2 descriptors: it has one"),
    ],
)
def test_an_order_with_other_descriptors_is_refused(data: bytes, count: int, why: str) -> None:
    with ff.Fd(null()) as fd, pytest.raises(ProtocolError, match=why):
        decode_order(received(data, *[fd] * count))


def test_an_event_with_descriptors_is_refused() -> None:
    with ff.Fd(null()) as fd, pytest.raises(ProtocolError, match="ready: 1 descriptors"):
        decode_event(received(encode_event(m.Ready()), fd))


@pytest.mark.parametrize("text", ["a\nb", "a\n", "a\rb", "a\u2028b"])
def test_a_status_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="status: line break"):
        m.Status(text)
    data = json.dumps({"event": "status", "text": text}).encode()
    with pytest.raises(ProtocolError, match="event status: status: line break"):
        decode_event(received(data))


def test_a_status_has_a_bound_and_can_be_shown() -> None:
    with pytest.raises(ValueError, match="status: 4001 bytes: at most 4000"):
        m.Status("a" * 4001)
    with pytest.raises(ProtocolError, match=r"text=.* is not of type str"):
        decode_event(received(b'{"event": "status", "text": "\\ud800"}'))


@pytest.mark.parametrize("data", [float("nan"), float("inf"), {1, 2}, b"bytes"])
def test_what_is_no_json_is_not_sent(data: object) -> None:
    for send in (encode_order, encode_event):
        with pytest.raises(ValueError, match="message: cannot be sent as JSON"):
            send(m.Message(data))


def test_what_is_too_deep_or_too_long_is_not_sent() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="order message: cannot be sent as JSON"):
        encode_order(m.Message(deep))
    while deep:  # its end would need as deep a recursion
        (deep,) = deep  # type: ignore[assignment]  # a list all the way
    longest = MAX_MESSAGE - len(encode_event(m.Message("")))
    assert len(encode_event(m.Message("a" * longest))) == MAX_MESSAGE
    with pytest.raises(ValueError, match=f"event message: {MAX_MESSAGE + 1} bytes"):
        encode_event(m.Message("a" * (longest + 1)))


OTHER_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
KEYS = st.sampled_from(["order", "event", "fds", "version", "turn", "text", "ready", "component"])
WORDS = st.sampled_from(["log", "peer", "status", "message", "drain", "accept"])
BODIES = st.dictionaries(KEYS, WORDS | OTHER_JSON)


@pytest.mark.parametrize("decode", [decode_order, decode_event])
@given(data=st.binary() | BODIES.map(lambda body: json.dumps(body).encode()))
def test_any_bytes_are_a_message_or_refused(
    decode: Callable[[ff.Received], object], data: bytes
) -> None:
    try:
        decode(received(data))
    except ProtocolError as error:
        assert len(str(error)) < 500


def test_what_the_state_machine_and_the_memory_guard_order_are_orders() -> None:
    names = {*get_args(_events.Order), *get_args(_memory_guard.Order)} - {"recycle"}
    assert len(names) == 8
    for name in names:
        assert order_name(order(name)) == name


def test_messages_are_spelled_in_one_place() -> None:
    """And a source that speaks of JSON's members "order" or "event" would be another."""
    here = Path(m.__file__)
    root = here.parents[1]
    sources = [path for path in root.rglob("*.py") if path.parent != here.parent]
    assert len(sources) > 50
    spelled = ['"order":', "'order':", '"event":', "'event':", '["order"]', '["event"]']
    spelled += ['get("order")', 'get("event")']
    found = [path for path in sources if any(word in path.read_text() for word in spelled)]
    assert found == []
