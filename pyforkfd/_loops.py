"""asyncio on the fork-safe selector, and what a loop needs in the child of a fork."""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ._selector import ForkSafeSelector

if TYPE_CHECKING:
    import asyncio

Transports: TypeAlias = Literal["refuse", "close", "keep"]
"""What :func:`reinit_loop` does with connections that the loop serves."""

# What asyncio calls its parts from 3.11 to 3.14; none of them is public.
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

_BORN = os.getpid()  # the process that imported this


def new_event_loop() -> asyncio.SelectorEventLoop:
    """A new asyncio loop on a :class:`ForkSafeSelector`.

    A loop factory: ``asyncio.Runner(loop_factory=pyforkfd.new_event_loop)``.  In the child of
    a fork its epoll is the child's own; :func:`reinit_loop` makes the rest usable there.

    Raises:
        OSError: no epoll or no socket pair could be made.
    """
    import asyncio  # here: a third of what importing us would cost

    selector = ForkSafeSelector()
    try:
        return asyncio.SelectorEventLoop(selector)
    except BaseException:
        selector.close()
        raise


def reinit_loop(
    loop: asyncio.AbstractEventLoop | None = None, *, transports: Transports = "refuse"
) -> asyncio.AbstractEventLoop:
    """Make a loop that the parent made usable in this child of a fork, or say why not.

    Call it in the child before the loop runs, or from the callback or coroutine that forked.
    The loop gets an epoll of its own, where it is on a :class:`selectors.EpollSelector` a
    ForkSafeSelector; a self-pipe of its own, since a byte in the shared one wakes either
    process; the signal wake-up descriptor for its signal handlers; and, if it ran on the
    thread that forked, it is the running loop again.  Its default executor, whose threads are
    not in this process, is forgotten; the next run_in_executor() makes another, but what was
    handed to the old one never ends.

    What it listens on stays registered: both processes accept.  Readers and writers that were
    added by hand stay too, and so do tasks, callbacks and timers, which both processes run;
    cancel what only one shall do.

    Args:
        loop: one of asyncio's selector loops; None: the one that ran on the thread that forked.
        transports: what to do with connections and pipes, which both processes would read, and
            with children that are waited for, which are the parent's. ``refuse``: raise.
            ``close``: abort them here, which the peer and the parent do not notice. ``keep``:
            as they are; for children there is nothing to keep, and nobody is told of their end.

    Returns:
        The loop.

    Raises:
        RuntimeError: why it cannot be used, in all its reasons; it was not changed.
        TypeError: it is not one of asyncio's selector loops, or this Python's is not known.
        OSError: no epoll or no socket pair could be made; the loop cannot be used.
    """
    import asyncio

    if transports not in ("refuse", "close", "keep"):
        raise ValueError(f"reinit_loop: transports={transports!r} is none of refuse, close, keep")
    if os.getpid() == _BORN:
        raise RuntimeError("reinit_loop: this process was not forked since pyforkfd was imported")
    known: Any = _known(loop if loop is not None else _running_at_the_fork())
    held = _Held.of(known)
    reasons = _obstacles(known)
    if transports == "refuse":
        reasons += held.reasons()
    if reasons:
        raise RuntimeError(f"{known!r} cannot be used in this child: " + "; ".join(reasons))

    if isinstance(known._selector, selectors.EpollSelector):
        known._selector = _moved(known._selector)
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
        asyncio._set_running_loop(known)
    return known  # type: ignore[no-any-return]


def _running_at_the_fork() -> asyncio.AbstractEventLoop | None:
    """The loop that says so of itself.

    Nobody remembers it: a hook of every fork would cost all that never ask.
    """
    import asyncio

    mine = threading.get_ident()
    for found in gc.get_objects():
        if isinstance(found, asyncio.BaseEventLoop) and vars(found).get("_thread_id") == mine:
            return found
    return None


@dataclass(slots=True)
class _Held:
    """What of a loop belongs to the parent."""

    transports: list[Any] = field(default_factory=list)
    pidfds: list[int] = field(default_factory=list)  # of children that are waited for
    threads: dict[int, object] = field(default_factory=dict)  # likewise, by pid

    @classmethod
    def of(cls, loop: Any) -> _Held:
        import asyncio

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
        policy = getattr(asyncio.events, "_event_loop_policy", None)
        watcher = getattr(loop, "_watcher", None) or getattr(policy, "_watcher", None)
        threads = getattr(watcher, "_threads", None)
        if isinstance(threads, dict):
            held.threads = threads
        return held

    def reasons(self) -> list[str]:
        said = [f"{transport!r} is the parent's connection too" for transport in self.transports]
        said += [f"pidfd {fd} is of a child of the parent" for fd in self.pidfds]
        said += [f"process {pid} is a child of the parent" for pid in self.threads]
        if said:
            said.append('say transports="close" or "keep"')
        return said

    def forget_children(self, loop: Any) -> None:
        for pidfd in self.pidfds:
            loop._remove_reader(pidfd)
            os.close(pidfd)
        self.threads.clear()


def _known(loop: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    import asyncio

    if loop is None:
        raise RuntimeError("reinit_loop: no loop ran on the thread that forked: say which")
    if loop.is_closed():
        raise RuntimeError(f"reinit_loop: {loop!r} is closed")
    if not isinstance(loop, asyncio.SelectorEventLoop):
        raise TypeError(f"reinit_loop: {type(loop).__name__} is none of asyncio's selector loops")
    for name, kind in _INTERNALS.items():
        if not isinstance(getattr(loop, name, _INTERNALS), kind) or not hasattr(loop, name):
            raise TypeError(f"reinit_loop: this Python's loop has no {name} that is known here")
    return loop


def _obstacles(loop: Any) -> list[str]:
    said = []
    if loop._thread_id not in (None, threading.get_ident()):
        said.append(
            "it ran on another thread than the one that forked: a callback of it was cut short"
        )
    if threading.current_thread() is not threading.main_thread():
        said.append("only the main thread can set the signal wake-up descriptor")
    if isinstance(loop._selector, selectors.EpollSelector):
        for key in loop._selector.get_map().values():
            try:
                os.fstat(key.fd)
            except OSError:
                said.append(f"descriptor {key.fd} is registered, but closed")
    elif not isinstance(loop._selector, _UNSHARED):
        said.append(f"it is on a {type(loop._selector).__name__}, which may be the parent's too")
    return said


_UNSHARED = (ForkSafeSelector, selectors.SelectSelector, selectors.PollSelector)


def _moved(inherited: selectors.EpollSelector) -> ForkSafeSelector:
    """All that is registered, in an epoll of our own; the parent's is closed, not changed."""
    own = ForkSafeSelector()
    try:
        for key in list(inherited.get_map().values()):
            own.register(key.fileobj, key.events, key.data)
    except BaseException:
        own.close()
        raise
    inherited.close()
    return own
