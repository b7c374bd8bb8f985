"""A message that cannot be taken is logged, ignored, and never the end of the channel."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import garbage
import pytest
from garbage import GARBAGE
from hypothesis import given, settings
from hypothesis import strategies as st
from places import HELPERS
from sandbox import kernel_refuses
from services import Lines, service

import pyforkfd as ff
from pyforkfd.supervisor.worker._identity import Identity
from pyforkfd.supervisor.worker._messages import Drain, Peer
from pyforkfd.supervisor.worker._orders import Orders
from pyforkfd.supervisor.worker._protocol import ProtocolError, encode_order
from pyforkfd.supervisor.worker._receiving import Refusals, receive

ENV = {"PYTHONPATH": str(HELPERS)}


def config(workers: int, *args: str) -> str:
    command = [sys.executable, "-P", str(HELPERS / "garbage.py"), *args]
    return f"""
name = "test"
[components.odd]
command = {json.dumps(command)}
workers = {workers}
stdout = "inherit"
stderr = "inherit"
"""


def test_what_workers_send_is_refused_and_the_next_message_arrives(tmp_path: Path) -> None:
    """A worker for each kind of garbage; descriptors are refused by the kernel where it can."""
    count = len(GARBAGE)
    by_kernel = [name for name, _, _ in GARBAGE if "descriptors" in name and kernel_refuses()]
    with service(tmp_path, config(count), ready=count, env=ENV) as running:
        for position, (name, _, why) in enumerate(GARBAGE):
            worker_id = position + 1
            if name in by_kernel:
                running.log.wait_for(rf'message \["odd", {worker_id}, {{"refused": {position}}}\]')
                running.log.wait_for(rf'message \["odd", {worker_id}, {{"good": {position}}}\]')
                continue
            running.log.wait_for(rf"odd: worker {worker_id}: message refused: .*{why}")
            running.log.wait_for(rf'message \["odd", {worker_id}, {{"good": {position}}}\]')
            if "descriptors" in name:
                running.log.wait_for(rf'message \["odd", {worker_id}, {{"closed": {position}}}\]')
        running.stop()
        text = running.log.text()
        assert text.count("message refused") == count - len(by_kernel)
        assert text.count("has left: exit code 0") == count, "each has read the order to drain"
        assert all(len(line) < 1000 for line in text.splitlines())


def test_a_flood_of_garbage_does_not_flood_the_log(tmp_path: Path) -> None:
    with service(tmp_path, config(1, "flood", "3000"), env=ENV) as running:
        running.log.wait_for(r'message \["odd", 1, {"good": 0}\]')
        running.log.wait_for(r"odd: worker 1: message refused: \d+ more within 10 s; the last: not")
        running.stop()
        text = running.log.text()
        counted = [int(n) for n in re.findall(r"refused: (\d+) more", text)]
        single = len(re.findall("refused: not JSON", text))
        assert single + sum(counted) == 3000
        assert single <= 5 * (len(counted) + 1)


WORKER = """
import sys
from pyforkfd.supervisor import worker
me = worker.current()
for name in ("peer", "drain", "orphaned"):
    me.on(name, lambda order: print(order.name, order.body.get("component"), flush=True))
print("begun", flush=True)
if sys.argv[1] == "listeners":
    print(*me.listeners(), flush=True)
while not me.draining and not me.orphaned:
    me.poll(1.0)
me.poll(0.0)
"""


@pytest.fixture
def channel() -> Iterator[tuple[ff.FdChannel, ff.FdChannel]]:
    ours, theirs = ff.FdChannel.pair()
    with ours, theirs:
        yield ours, theirs


class Child:
    """A worker without a supervisor: this test is at the other end."""

    def __init__(self, theirs: ff.FdChannel, how: str) -> None:
        identity = Identity(
            component="web",
            worker_id=7,
            position=0,
            generation=1,
            channel=9,
            by_channel=how == "listeners",
        )
        self.process = ff.spawn(
            [sys.executable, "-P", "-c", WORKER, how],
            env={**os.environ, "FORKFD_WORKER": identity.encode()},
            fds={1: ff.PIPE, 2: ff.STDOUT, 9: theirs},
        )
        theirs.close()
        assert self.process.stdout is not None
        self.log = Lines(os.dup(self.process.stdout.fileno()))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is not None:
            self.process.kill()
        try:
            assert self.process.wait(timeout=60.0).code == 0 or kind is not None
        finally:
            self.process.close()
            self.log.join()


@pytest.mark.parametrize(("name", "data", "why"), GARBAGE, ids=[g[0] for g in GARBAGE])
def test_what_a_supervisor_sends_is_refused_and_the_next_order_arrives(
    name: str, data: bytes, why: str, channel: tuple[ff.FdChannel, ff.FdChannel]
) -> None:
    ours, theirs = channel
    with Child(theirs, "poll") as child, socket.socket(fileno=os.dup(ours.fileno())) as sock:
        reader = garbage.send(sock, name, data)
        ours.send(encode_order(Peer("keys", 1)))
        child.log.wait_for("peer keys")
        if reader is not None:
            assert os.read(reader, 1) == b""
            os.close(reader)
        ours.send(encode_order(Drain()))
        child.log.wait_for("drain None")
        child.log.wait_for(f"web: worker 7: order refused: .*{why}")


def test_garbage_before_the_listeners_is_refused(
    channel: tuple[ff.FdChannel, ff.FdChannel],
) -> None:
    ours, theirs = channel
    with (
        Child(theirs, "listeners") as child,
        ff.bind("tcp://127.0.0.1:0") as listener,
    ):
        ours.send(b"garbage")
        ours.send(encode_order(Peer("keys", 1)))
        ours.send(b'{"order": "listeners", "fds": ["web"]}', [listener])
        ours.send(encode_order(Drain()))
        child.log.wait_for("order refused: not JSON")
        child.log.wait_for("^web$")
        child.log.wait_for("peer keys")


def test_the_end_of_the_channel_is_the_end_after_all(
    channel: tuple[ff.FdChannel, ff.FdChannel],
) -> None:
    ours, theirs = channel
    with Child(theirs, "poll") as child:
        with socket.socket(fileno=os.dup(ours.fileno())) as sock:
            sock.send(b"")
        ours.close()
        child.log.wait_for("orphaned None")


# In this process


def test_what_was_sent_before_an_end_with_unread_messages_is_received(
    channel: tuple[ff.FdChannel, ff.FdChannel],
) -> None:
    """ECONNRESET comes before what is in the queue."""
    ours, theirs = channel
    theirs.send(b"one")
    theirs.send(b"two")
    ours.send(b"unread")
    theirs.close()
    for wanted in (b"one", b"two"):
        with receive(ours, 0) or pytest.fail("the end came too early") as message:
            assert message.data == wanted
    assert receive(ours, 0) is None


def test_empty_messages_are_told_from_the_end(channel: tuple[ff.FdChannel, ff.FdChannel]) -> None:
    ours, theirs = channel
    with socket.socket(fileno=os.dup(theirs.fileno())) as sock:
        sock.send(b"")
        with pytest.raises(ProtocolError, match="an empty message"):
            receive(ours, 0)
        with pytest.raises(TimeoutError):
            receive(ours, 0)
        sock.send(b"")
        theirs.send(b"last")
    theirs.close()
    with pytest.raises(ProtocolError, match="an empty message"):
        receive(ours, 0)
    with receive(ours, 0) or pytest.fail("the end came too early") as message:
        assert message.data == b"last"
    assert receive(ours, 0) is None


PACKETS = st.lists(st.binary(max_size=70_000) | st.sampled_from([g[1] for g in GARBAGE]))


@given(packets=PACKETS)
@settings(deadline=None)
def test_after_any_bytes_an_order_is_followed(packets: list[bytes]) -> None:
    ours, theirs = ff.FdChannel.pair()
    with ours, theirs:
        orders = Orders(theirs, "web: worker 7")
        with socket.socket(fileno=os.dup(ours.fileno())) as sock:
            for packet in packets:
                sock.send(packet)
                assert orders.read(0.0) == 1
        ours.send(encode_order(Peer("keys", len(packets))))
        assert orders.read(0.0) == 1
        assert orders.peers == {"keys": len(packets)}
        assert orders.can_come
        ours.close()
        assert orders.read(0.0) == 0
        assert orders.orphaned


@given(
    calls=st.lists(st.tuples(st.floats(0, 4), st.booleans())),
    start=st.floats(0, 1e6),
)
def test_every_refusal_is_reported_or_counted_and_few_are_reported(
    calls: list[tuple[float, bool]], start: float
) -> None:
    lines: list[str] = []
    refusals = Refusals(lines.append)
    now, added = start, 0
    for after, adds in calls:
        now += after
        if adds:
            added += 1
            refusals.add(f"garbage {added}", now)
        else:
            refusals.flush(now)
    refusals.flush(now, end=True)
    counted = [int(match[1]) for line in lines if (match := re.match(r"(\d+) more within", line))]
    assert len(lines) - len(counted) + sum(counted) == added
    windows = (now - start) / 10.0 + 1
    assert len(lines) <= 6 * windows
    reported = len(lines)
    refusals.flush(now + 100, end=True)
    assert len(lines) == reported, "nothing is counted twice"
