"""asyncio on the fork-safe selector, and a loop made usable in the child of a fork."""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
import signal
import socket
import threading
from asyncio import events
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ._selector import BORN, ForkSafeSelector

Transports: TypeAlias = Literal["refuse", "close", "keep"]
"""The treatment of connections that the loop serves, see :func:`reinit_loop`."""

# The names of asyncio's parts from 3.11 to 3.14; none of them is public.
_INTERNALS: dict[str, type] = {
    "_selector": selectors.BaseSelector,
    "_ssock": socket.socket,
    "_csock": socket.socket,
    "_internal_fds": int,
    "_signal_handlers": dict,
    "_transports": Mapping,
    "_default_executor": object,
    "_thread_id": object,
    "_close_self_pipe": object,
    "_make_self_pipe": object,
    "_read_from_self": object,
}


def new_event_loop() -> asyncio.SelectorEventLoop:
    """Make an asyncio loop on a :class:`ForkSafeSelector`.

    A loop factory: ``asyncio.Runner(loop_factory=pyforkfd.new_event_loop)``.  In the child of
    a fork its epoll is the child's own; :func:`reinit_loop` makes the rest usable there.

    Raises:
        OSError: no epoll or no socket pair could be made.
    """
    selector = ForkSafeSelector()
    try:
        return asyncio.SelectorEventLoop(selector)
    except BaseException:
        selector.close()
        raise


def reinit_loop(
    loop: asyncio.AbstractEventLoop | None = None, *, transports: Transports = "refuse"
) -> asyncio.AbstractEventLoop:
    """Make a loop of the parent usable in this child of a fork, or raise the reasons why not.

    Call it in the child before the loop runs, or from the callback or coroutine that forked.
    The loop gets an epoll of its own, where it is on a :class:`selectors.EpollSelector` a
    ForkSafeSelector; a self-pipe of its own, since a byte in the shared one wakes either
    process; the signal wake-up descriptor for its signal handlers; and, if it ran on the
    thread that forked, it is the running loop again.  Its default executor, whose threads are
    not in this process, is dropped; the next run_in_executor() makes another, but a call that
    was submitted to the old one never ends.

    Listeners stay registered: both processes accept.  Readers and writers that were added by
    hand stay too, and so do tasks, callbacks and timers, which both processes run; cancel
    those that only one shall run.

    Args:
        loop: one of asyncio's selector loops; None: the one that ran on the thread that forked.
        transports: the treatment of connections and pipes, which both processes would read,
            and of children that are waited for, which are the parent's. ``refuse``: raise.
            ``close``: abort them here, which the peer and the parent do not notice. ``keep``:
            leave them as they are; children are dropped, and their end is not reported.

    Returns:
        The loop.

    Raises:
        RuntimeError: the loop cannot be used, with all reasons; it was not changed.
        TypeError: the loop is not one of asyncio's selector loops, or this Python's loop is
            not known here.
        ValueError: ``transports`` is none of the three.
        OSError: no epoll or no socket pair could be made; the loop cannot be used.
    """
    if transports not in ("refuse", "close", "keep"):
        raise ValueError(f"reinit_loop: transports={transports!r} is none of refuse, close, keep")
    if os.getpid() == BORN:
        raise RuntimeError("reinit_loop: this process was not forked since pyforkfd was imported")
    known: Any = _known(loop if loop is not None else _running_at_the_fork())
    held = _Held.of(known)
    reasons = _obstacles(known)
    if transports == "refuse":
        reasons += held.reasons()
    if reasons:
        raise RuntimeError(f"{known!r} cannot be used in this child: " + "; ".join(reasons))

    if isinstance(known._selector, selectors.EpollSelector):
        known._selector = _own_epoll(known._selector)
    shared_csock = known._csock.fileno()
    wakeup = signal.set_wakeup_fd(-1)
    known._close_self_pipe()
    known._make_self_pipe()
    if known._signal_handlers:
        signal.set_wakeup_fd(known._csock.fileno())
    elif wakeup != shared_csock:
        signal.set_wakeup_fd(wakeup)
    known._default_executor = None
    held.forget_children(known)
    if transports == "close":
        for transport in held.transports:
            transport.abort()
    if known._thread_id is not None:
        events._set_running_loop(known)
    return known  # type: ignore[no-any-return]


def _running_at_the_fork() -> asyncio.AbstractEventLoop | None:
    """Return the loop that was running on this thread.

    It is searched for among all objects: to record it, a hook would have to run in every fork.
    """
    mine = threading.get_ident()
    for found in gc.get_objects():
        if isinstance(found, asyncio.BaseEventLoop) and vars(found).get("_thread_id") == mine:
            return found
    return None


@dataclass(slots=True)
class _Held:
    """The parts of a loop that belong to the parent."""

    transports: list[Any] = field(default_factory=list)
    pidfds: list[int] = field(default_factory=list)  # of children that are waited for
    threads: dict[int, object] = field(default_factory=dict)  # likewise, by pid

    @classmethod
    def of(cls, loop: Any) -> _Held:
        held = cls()
        found = dict.fromkeys(loop._transports.values())  # those that read nothing too
        for key in loop._selector.get_map().values():
            for handle in key.data or ():
                owner = getattr(getattr(handle, "_callback", None), "__self__", None)
                if isinstance(owner, asyncio.BaseTransport):
                    found[owner] = None
                elif type(owner).__name__.endswith("PidfdChildWatcher"):
                    held.pidfds.append(key.fd)
        held.transports = [transport for transport in found if not transport.is_closing()]
        # The loop's from 3.14 on, the policy's before.
        policy = getattr(events, "_event_loop_policy", None)
        watcher = getattr(loop, "_watcher", None) or getattr(policy, "_watcher", None)
        threads = getattr(watcher, "_threads", None)
        if isinstance(threads, dict):
            held.threads = threads
        return held

    def reasons(self) -> list[str]:
        found = [f"{transport!r} is the parent's connection too" for transport in self.transports]
        found += [f"pidfd {fd} is of a child of the parent" for fd in self.pidfds]
        found += [f"process {pid} is a child of the parent" for pid in self.threads]
        if found:
            found.append('write transports="close" or "keep"')
        return found

    def forget_children(self, loop: Any) -> None:
        for pidfd in self.pidfds:
            loop._remove_reader(pidfd)
            os.close(pidfd)
        self.threads.clear()


def _known(loop: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    if loop is None:
        raise RuntimeError("reinit_loop: no loop ran on the thread that forked: pass one")
    if loop.is_closed():
        raise RuntimeError(f"reinit_loop: {loop!r} is closed")
    if not isinstance(loop, asyncio.SelectorEventLoop):
        raise TypeError(f"reinit_loop: {type(loop).__name__} is none of asyncio's selector loops")
    for name, kind in _INTERNALS.items():
        if not isinstance(getattr(loop, name, _INTERNALS), kind) or not hasattr(loop, name):
            raise TypeError(f"reinit_loop: this Python's loop has no {name} that is known here")
    return loop


def _obstacles(loop: Any) -> list[str]:
    reasons = []
    if loop._thread_id not in (None, threading.get_ident()):
        reasons.append(
            "it ran on another thread than the one that forked: a callback of it was cut short"
        )
    if threading.current_thread() is not threading.main_thread():
        reasons.append("only the main thread can set the signal wake-up descriptor")
    if isinstance(loop._selector, selectors.EpollSelector):
        for key in loop._selector.get_map().values():
            try:
                os.fstat(key.fd)
            except OSError:
                reasons.append(f"descriptor {key.fd} is registered, but closed")
    elif not isinstance(loop._selector, _UNSHARED):
        reasons.append(f"it is on a {type(loop._selector).__name__}, which may be the parent's too")
    return reasons


_UNSHARED = (ForkSafeSelector, selectors.SelectSelector, selectors.PollSelector)


def _own_epoll(inherited: selectors.EpollSelector) -> ForkSafeSelector:
    """Register all descriptors in an epoll of our own; close the parent's, unchanged."""
    own = ForkSafeSelector()
    try:
        for key in list(inherited.get_map().values()):
            own.register(key.fileobj, key.events, key.data)
    except BaseException:
        own.close()
        raise
    inherited.close()
    return own
