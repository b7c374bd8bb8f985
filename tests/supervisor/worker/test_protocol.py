"""FORKFD_WORKER and the supervisor's messages, taken apart."""

from __future__ import annotations

import pytest

import pyforkfd as ff
from pyforkfd.supervisor.worker._protocol import identify, parse

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
    [("worker=1", "component"), (f"{WHO} channel=x", "'x'"), (f"{WHO} listen=http:", "''")],
)
def test_nonsense_is_named(text: str, missing: str) -> None:
    with pytest.raises(ValueError, match=f"FORKFD_WORKER=.*{missing}"):
        identify(text)


def test_an_order_has_its_descriptors_by_name(other_fd: int) -> None:
    one, two = ff.FdChannel.pair()
    with one, two:
        one.send(b'{"order": "accept", "fds": ["web/1"]}', [other_fd])
        with two.recv() as message:
            order = parse(message)
            assert order.name == "accept" and list(order.fds) == ["web/1"]
            assert ff.same_open_file(order.fds["web/1"], other_fd)


@pytest.mark.parametrize(
    "data", [b"no json", b"[]", b'{"order": 1}', b'{"order": "x", "fds": ["a"]}']
)
def test_what_is_no_order_is_refused(data: bytes) -> None:
    one, two = ff.FdChannel.pair()
    with one, two:
        one.send(data)
        with two.recv() as message, pytest.raises(ValueError, match=r"order|JSON|Expecting"):
            parse(message)
