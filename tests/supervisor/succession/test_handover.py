"""A successor reads the record as it was written, whenever the writer is killed."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyforkfd.supervisor.spec._spec import (
    Component,
    Listener,
    Privileges,
    Recycle,
    Restart,
    Service,
)
from pyforkfd.supervisor.state._events import (
    Action,
    BecameReady,
    Ended,
    Event,
    Reload,
    Reloaded,
    Retire,
    RollBack,
    Scale,
    SendOrder,
    Spawn,
    Spawned,
    Stop,
    Tick,
    WentStale,
)
from pyforkfd.supervisor.state._model import State, initial
from pyforkfd.supervisor.state._step import advance, step
from pyforkfd.supervisor.succession import _handover, _journal
from pyforkfd.supervisor.succession._codec import CodecError, decode, encode
from pyforkfd.supervisor.succession._durable_text import Record
from pyforkfd.supervisor.succession._handover import Handover, HandoverError, dump
from pyforkfd.supervisor.succession._journal import Journal, load

numbers = st.integers(min_value=1, max_value=8)
events: st.SearchStrategy[Event] = st.one_of(
    st.just(Tick()),
    st.builds(Spawned, numbers, st.integers(2, 2**22)),
    st.builds(BecameReady, numbers, st.booleans()),
    st.builds(Ended, numbers, st.sampled_from(["exit", "signal", "oom", "done"]), st.text()),
    st.builds(WentStale, numbers, st.just("stale")),
    st.builds(Retire, numbers, st.just("old")),
    st.builds(Reload, st.none(), st.none() | st.just(frozenset({"web"}))),
    st.just(RollBack()),
    st.builds(Scale, st.sampled_from(["web", "jobs"]), st.integers(0, 3)),
    st.builds(Stop, st.booleans()),
)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(st.text() | st.integers() | st.tuples(st.text(), st.integers()), inner),
        st.frozensets(st.text(), max_size=1),  # more have no order to compare
    ),
    max_leaves=20,
)


def service() -> Service:
    web = Component(
        name="web",
        command=("/bin/worker", "--port"),
        workers=2,
        listen=("http",),
        numbers=MappingProxyType({"http": 5}),
        rlimits={"NOFILE": (1024, -1)},
        stop_signal=signal.SIGQUIT,
        restart=Restart(max_restarts=3),
        recycle=Recycle(age=60.0),
        privileges=Privileges(capabilities=()),
    )
    jobs = Component(
        name="jobs", function="a.b:c", args=([1], b"x", datetime(2026, 1, 1, tzinfo=UTC))
    )
    return Service(
        name="s",
        components={"web": web, "jobs": jobs},
        listeners={"http": Listener(name="http", address="tcp://:8000", shards=True)},
        rollback=10.0,
    )


def handover(state: State, todo: Sequence[Action], **options: Any) -> Handover:
    one = service()
    return Handover(
        state=state,
        service=one,
        services={state.generation: one},
        todo=tuple(todo),
        sockets={"s0": ("tcp://:8000", True, 0)},
        directory="/tmp/x",
        resources={"page": {12: 3}},
        **options,
    )


@settings(deadline=None)
@given(st.lists(st.tuples(events, st.floats(0, 40)), max_size=40))
def test_every_state_is_read_as_it_was_written(happened: list[tuple[Event, float]]) -> None:
    state, now = initial(service()), 1000.0
    state, todo = step(state, Tick(), now)
    for event, later in happened:
        now += later
        state, todo = step(state, event, now)
    written = handover(state, todo)
    read = load(dump(written))
    assert read == written
    # And it decides alike.
    assert step(read.state, Tick(), now + 100) == step(state, Tick(), now + 100)


@settings(deadline=None)
@given(st.lists(st.tuples(events, st.floats(0, 40)), max_size=40), st.integers(0, 1 << 12))
def test_every_step_is_read_as_it_was_written(
    happened: list[tuple[Event, float]], smallest: int
) -> None:
    """Whether as a change or as a whole, after changes of all parts."""
    with pytest.MonkeyPatch.context() as patch, Journal() as journal:
        patch.setattr(_journal, "_SMALLEST", smallest)
        state, now = initial(service()), 1000.0
        resources: dict[str, Any] = {"metrics": {"components": {"jobs": {"restarts": 0}}}}
        for turn, (event, later) in enumerate([(Tick(), 0.0), *happened]):
            now += later
            taken = advance(state, event, now)
            state = taken.state
            change = {"metrics": {"components": {f"c{turn % 3}": {"restarts": turn}}}}
            resources = _journal._merged(resources, change)
            written = replace(
                handover(state, taken.actions),
                sockets={f"s{turn // 4}": ("tcp://:8000", True, turn // 4)},
                resources=resources,
            )
            journal.add(written, taken.workers, change)
            read = load(journal.read()[0])
            assert read == written
        # And it decides alike.
        assert step(read.state, Tick(), now + 100) == step(state, Tick(), now + 100)


def test_a_step_costs_what_it_changes() -> None:
    web = replace(service().components["web"], workers=500)
    many = replace(service(), components={"web": web})
    with Journal() as journal:
        taken = advance(initial(many), Tick(), 1000.0)
        journal.add(handover(taken.state, taken.actions), taken.workers, {})
        whole = len(journal.read()[0])
        taken = advance(taken.state, Spawned(7, 123), 1000.0)
        journal.add(handover(taken.state, taken.actions), taken.workers, {})
        added = len(journal.read()[0]) - whole
        assert 0 < added < whole / 50
        for worker_id in range(8, 400):
            taken = advance(taken.state, Spawned(worker_id, 123), 1000.0)
            journal.add(handover(taken.state, taken.actions), taken.workers, {})
        assert len(journal.read()[0]) <= 2 * max(whole, 1 << 16) + added, "it is written anew"
        assert load(journal.read()[0]).state == taken.state


def test_after_a_shortage_the_whole_is_written(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pyforkfd.supervisor")
    with pytest.MonkeyPatch.context() as patch, Journal() as journal:
        patch.setattr(_journal, "is_shortage", lambda error: error.errno == errno.EFBIG)
        taken = advance(initial(service()), Tick(), 1000.0)
        journal.add(handover(taken.state, taken.actions), taken.workers, {})
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(journal.read()[0]), limit[1]))
            kept = journal.read()
            for worker_id in (1, 2):
                taken = advance(taken.state, Spawned(worker_id, 10), 1000.0)
                journal.add(handover(taken.state, taken.actions), taken.workers, {})
                journal.advance()
                assert journal.stale and journal.read() == kept
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, before)
        taken = advance(taken.state, Spawned(3, 10), 1000.0)
        journal.add(handover(taken.state, taken.actions), taken.workers, {})
        assert load(journal.read()[0]).state == taken.state
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "the record is not up to date: [Errno 27] File too large",
        "the record is up to date again",
    ]


@given(plain)
def test_values_keep_their_types(value: Any) -> None:
    read = decode(json.loads(json.dumps(encode(value))))
    assert read == value
    assert repr(read) == repr(value)


def test_a_field_that_only_a_newer_program_has_is_left_out() -> None:
    written = encode(Spawn(3))
    written["Spawn"]["how"] = "new"
    assert decode(written) == Spawn(3)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ({"Retreat": {}}, "there is no Retreat"),
        ({"Spawn": {}}, "not a Spawn .*worker"),
        ({"Phase": "ASLEEP"}, "not a Phase"),
        ({"tuple": [], "list": []}, "2 kinds"),
    ],
)
def test_an_unknown_value_is_named(written: Any, why: str) -> None:
    with pytest.raises(CodecError, match=why):
        decode(written)


def test_a_value_that_cannot_be_pickled_is_named() -> None:
    with pytest.raises(CodecError, match="lambda"):
        encode(lambda: None)


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dump(handover(initial(service()), []))
    monkeypatch.setattr(_handover, "VERSION", _handover.VERSION + 1)
    with pytest.raises(HandoverError, match="version 3, this program reads version 4 only: stop"):
        load(data)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"version": 3}', b"\xff", b"null"])
def test_a_damaged_record_is_refused(data: bytes) -> None:
    with pytest.raises(HandoverError):
        load(data)


def test_no_action_is_performed_twice_and_none_is_lost() -> None:
    state, todo = step(initial(service()), Tick(), 1000.0)
    assert todo == [Spawn(1), Spawn(2), Spawn(3)]
    state, _ = step(state, Spawned(1, 10), 1000.0)
    later: list[Action] = [Spawn(1), SendOrder(1, "drain"), Reloaded(2), Reloaded(3)]
    past = handover(state, later)
    # Workers two and three were to be started and have no pid; one has.
    assert past.remaining(0) == [
        SendOrder(1, "drain"),
        Reloaded(2),
        Reloaded(3),
        Spawn(2),
        Spawn(3),
    ]
    assert past.remaining(3) == [Reloaded(3), Spawn(2), Spawn(3)]
    assert past.promised(0) == 2
    assert past.promised(3) == 1


@given(st.lists(st.binary(max_size=300), max_size=30))
def test_a_record_has_the_last_text(texts: list[bytes]) -> None:
    record = Record()
    try:
        assert record.read() == (b"", 0)
        for text in texts:
            record.write(text[:100])
            record.append(text[100:])
            assert record.read() == (text, 0)
            record.advance()
            record.advance()
            assert record.read() == (text, 2)
        most = 3 * max(map(len, texts), default=0) + 24
        assert os.fstat(record.fileno()).st_size <= most
    finally:
        record.close()


def test_a_record_is_whole_whenever_its_writer_is_killed() -> None:
    record = Record()
    texts = [bytes([n]) * (4096 * n + n) for n in range(1, 6)]
    record.write(texts[0])
    cut_short = 0
    try:
        for _ in range(30):
            begun, other = os.pipe()
            if (pid := os.fork()) == 0:
                while True:
                    for text in texts:
                        record.write(text)
                    os.write(other, b"x")
            os.read(begun, 1)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(begun)
            os.close(other)
            text, _ = record.read()
            assert text in texts
            cut_short += text != texts[0]
    finally:
        record.close()
    assert cut_short > 0, "no writer has got far enough to be cut short"
