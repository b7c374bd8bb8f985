"""How epoll breaks servers that fork, each told twice: by the standard library and by ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import selectors
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from selectors import EVENT_READ

import pytest
from forked import holding, in_child

import pyforkfd as ff

STOCK: Callable[[], selectors.EpollSelector] = selectors.EpollSelector
OURS: Callable[[], ff.ForkSafeSelector] = ff.ForkSafeSelector
Selector = selectors.EpollSelector | ff.ForkSafeSelector


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The first is ready to be read."""
    one, other = socket.socketpair()
    with one, other:
        other.send(b"ready")
        yield one, other


def kinds(selector: Selector) -> set[str]:
    return {drift.kind for drift in ff.audit(selector)}


# The child's unregister disturbs the parent.


def unregistered_in_the_child(selector: Selector, one: socket.socket) -> bool:
    """Whether the parent still hears of what only the child has unregistered."""
    with selector:
        selector.register(one, EVENT_READ)
        in_child(lambda: selector.unregister(one) and None)
        return bool(selector.select(0))


def test_a_child_that_unregisters_silences_the_parent(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    assert not unregistered_in_the_child(STOCK(), pair[0])
    assert unregistered_in_the_child(OURS(), pair[0])


def test_so_it_does_with_a_bare_epoll(pair: tuple[socket.socket, socket.socket]) -> None:
    with contextlib.closing(select.epoll()) as epoll:
        epoll.register(pair[0], select.EPOLLIN)
        in_child(lambda: epoll.unregister(pair[0]))
        assert not epoll.poll(0)


def closed_in_the_child(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether another thread can still wake the parent's loop."""
    try:
        in_child(loop.close)
        loop.call_soon_threadsafe(lambda: None)
        return bool(loop._selector.select(0))  # type: ignore[attr-defined]
    finally:
        loop.close()


def test_a_child_that_closes_its_asyncio_loop_makes_the_parents_deaf() -> None:
    assert not closed_in_the_child(asyncio.SelectorEventLoop(STOCK()))
    assert closed_in_the_child(ff.new_event_loop())


# A closed listener stays registered, and its close is repeated.


def closed_but_held(selector: Selector, path: Path) -> tuple[set[str], bool]:
    """What the audit finds once the listener is closed, and whether a stranger survives.

    A child that was forked meanwhile still has the listener.  Its number is given to a
    stranger, and a server closes what has ended, which is what it thinks it is told.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(selector)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen()
        number = listener.fileno()
        selector.register(listener, EVENT_READ)
        stack.enter_context(holding())
        listener.close()
        selector.unregister(listener)
        drift = kinds(selector)

        one, other = socket.socketpair()
        stack.enter_context(other)
        stranger = one.detach()
        if stranger != number:
            os.dup2(stranger, number)
            os.close(stranger)
        try:
            selector.register(number, EVENT_READ)
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(path))  # the child's listener
            for key, _ in selector.select(0):
                os.close(key.fd)
            return drift, _is_open(number)
        finally:
            with contextlib.suppress(OSError):
                os.close(number)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_a_listener_that_a_child_holds_stays_registered_and_is_closed_twice(
    tmp_path: Path,
) -> None:
    assert closed_but_held(STOCK(), tmp_path / "stock") == ({"closed"}, False)
    assert closed_but_held(OURS(), tmp_path / "ours") == (set(), True)


def never_unregistered(selector: Selector, path: Path) -> list[str]:
    """What select() does with a listener that was closed and that nobody unregistered."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(selector)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen()
        selector.register(listener, EVENT_READ)
        stack.enter_context(holding())
        listener.close()
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(str(path))
        selector.unregister(listener)
        epoll = select.epoll.fromfd(os.dup(selector.fileno()))
        with contextlib.closing(epoll):
            return ["woken for nothing" for _ in epoll.poll(0)]


def test_a_server_spins_for_a_listener_that_it_has_closed(tmp_path: Path) -> None:
    assert never_unregistered(STOCK(), tmp_path / "stock") == ["woken for nothing"]
    assert never_unregistered(OURS(), tmp_path / "ours") == []


# Entries differ when a fork falls between changes.


def changed_on_both_sides(selector: Selector) -> tuple[set[str], set[str]]:
    """What is adrift in child and parent when each goes on registering after the fork."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(selector)
        sockets = [s for _ in range(2) for s in socket.socketpair()]
        for one in sockets:
            stack.enter_context(one)
        before, parents, childs, _ = sockets
        gone_on, told = os.pipe()
        stack.callback(os.close, gone_on)

        selector.register(before, EVENT_READ)

        def child() -> set[str]:
            os.close(told)
            os.read(gone_on, 1)
            seen = kinds(selector)
            selector.register(childs, EVENT_READ)
            return seen

        def parent() -> None:
            selector.unregister(before)
            selector.register(parents, EVENT_READ)
            os.close(told)

        in_the_child = in_child(child, meanwhile=parent)
        return in_the_child, kinds(selector)


def test_entries_differ_when_a_fork_falls_between_changes() -> None:
    child, parent = changed_on_both_sides(STOCK())
    assert child == {"inherited", "unregistered", "unknown"}
    assert parent == {"unknown"}
    assert changed_on_both_sides(OURS()) == (set(), set())
