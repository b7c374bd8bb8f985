"""The application's end of one zygote process."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pyforkfd import _core
from pyforkfd._channel import FdChannel
from pyforkfd._fd import Fd
from pyforkfd._process import Process
from pyforkfd._spawn import spawn
from pyforkfd._types import DEVNULL

from ._birth import Birth, RequestLost
from ._errors import ZygoteError
from ._messages import SLOT, Kind, ProtocolError, Received, answer_pair, receive, send, slot_of
from ._request import Request, directory

Scope: TypeAlias = Literal["process", "thread"]
"""The parent whose end sends the parent-death signals of a zygote and its workers."""

CHANNEL = 3  # the zygote's end, in the zygote
_ROOT = str(Path(__file__).parents[2])
_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from pyforkfd.zygote._serve import main; main()"
)


@dataclass(frozen=True, slots=True)
class Configuration:
    """The options of a zygote; equal ones make equal zygotes."""

    preload: tuple[str, ...]
    setup: str | None
    freeze_gc: bool
    env: tuple[tuple[str, str], ...] | None
    rlimits: tuple[tuple[int, tuple[int, int]], ...]
    warm: int
    scope: Scope
    signal_mask: tuple[int, ...] | None
    default_signals: tuple[int, ...]
    first: tuple[str, ...] = ()  # directories in front of our path for imports


class Link:
    """A running zygote: its process, the channel to it, the page that both can write.

    Attributes:
        process: the zygote's process.
        home: the directory that the zygote was started in, by device and inode.
        held: descriptors that preloaded code has opened and every worker has: number -> target.
        siblings: whether workers are made our children by CLONE_PARENT.
        settled: whether everything is imported.
    """

    def __init__(self, configuration: Configuration, *, wait: bool = True) -> None:
        """Start a zygote.

        Args:
            configuration: the options.
            wait: wait for all imports; False: :meth:`settle` waits, once fileno() is readable.
        """
        self._environment = _environment()
        self.home = directory(".")
        self.held: Mapping[int, str] = {}
        self.siblings = True
        self.settled = False
        self._serials = itertools.count(1)
        self._lock = threading.Lock()
        self._users = 1  # the owner, until close(), and each birth
        self._warm = configuration.warm
        self._idle: list[Birth] = []  # workers requested ahead, the oldest first
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as lent:
            page = lent.enter_context(Fd(os.memfd_create("forkfd-zygote")))
            os.ftruncate(page.fileno(), mmap.PAGESIZE)
            self._slots = mmap.mmap(page.fileno(), mmap.PAGESIZE)
            undo.callback(self._slots.close)
            own_pidfd = lent.enter_context(Fd(os.pidfd_open(os.getpid())))
            self._channel, theirs = FdChannel.pair()
            undo.callback(self._channel.close)
            lent.enter_context(theirs)
            self.process = _start(theirs, configuration)
            undo.callback(self.close)
            theirs.close()  # or the end of the zygote would not close the channel
            self._configure(configuration, [page.fileno(), own_pidfd.fileno()])
            if wait:
                self.settle()
            undo.pop_all()

    def fileno(self) -> int:
        """Return the channel's descriptor: readable once all is imported, or has failed."""
        return self._channel.fileno()

    def _configure(self, configuration: Configuration, fds: list[int]) -> None:
        body = {
            "pid": os.getpid(),
            "path": [*configuration.first, *_import_path()],
            "argv": sys.argv,
            "main": _main_module() if "__main__" in configuration.preload else None,
            "preload": [name for name in configuration.preload if name != "__main__"],
            "setup": configuration.setup,
            "freeze_gc": configuration.freeze_gc,
        }
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # settle() raises
            send(self._channel, Kind.CONFIGURE, body, fds)

    def settle(self) -> None:
        """Wait until everything is imported.

        Raises:
            ZygoteError: an import or the setup failed, or the zygote ended; the caller closes
                the link.
        """
        if self.settled:
            return
        try:
            answer = receive(self._channel, upward=True)
        except (BrokenPipeError, ConnectionResetError):
            answer = None
        except ProtocolError as error:
            raise ZygoteError(f"the zygote runs another pyforkfd: {error}") from None
        if not isinstance(answer, Received):
            raise ZygoteError(f"the zygote ended before it was ready: {self.process.wait()}")
        if answer.kind is Kind.FAILED:
            raise ZygoteError(*answer.body)
        self.held = {int(number): target for number, target in answer.body["held"].items()}
        self.siblings = answer.body["why_not"] == ""
        if not self.siblings:
            _core.become_subreaper()
            # A zygote that is killed between two forks would leave the first behind.
            self._warm = 0
        self.settled = True
        self._refill()

    @property
    def alive(self) -> bool:
        """Whether the zygote has not ended."""
        return self.process.poll() is None

    def close(self) -> None:
        """Kill the zygote; its workers live on.  Births in other threads raise RequestLost."""
        self.process.kill()  # a zygote has no state, and may be in the middle of anything
        self.process.wait()
        self._leave()

    def abandon(self) -> None:
        """Close the parent's descriptors in a forked child, whose only thread this is."""
        self._lock, self._users = threading.Lock(), 1
        while self._idle:
            self._idle.pop().abandon()
        self._leave()

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        with self._lock:
            if self._users == 0:
                raise RequestLost
            self._users += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
        while self._idle:
            self._idle.pop().discard()
        self._channel.close()
        self.process.close()
        self._slots.close()

    def birth(self, request: Request, patience: float | None = None) -> tuple[int, int]:
        """Start one worker; return when all of the request is applied.

        Args:
            request: borrowed.
            patience: seconds that the worker may take; None: without end.

        Returns:
            pid and pidfd, owned.

        Raises:
            RequestLost: the zygote has ended, and made no worker.
            SpawnError, ThreadsError, ZygoteError: there is no worker, and why.
        """
        with self._used():
            while True:
                idle = None if request.born_for_it else self._take_idle()
                birth = idle or self._request(Kind.SPAWN, request)
                try:
                    if idle is not None:
                        idle.assign(request)
                    self._refill()
                    birth.wait(patience)
                except BaseException as error:
                    birth.discard()
                    if idle is not None and isinstance(error, RequestLost):
                        continue  # it was killed while it was idle
                    raise
                return birth.take()

    def _take_idle(self) -> Birth | None:
        with self._lock:
            for idle in self._idle[:]:
                idle.poll()
                if idle.failed:  # the reason is raised by the next request to the zygote
                    self._idle.remove(idle)
                    idle.discard()
                elif idle.born:
                    self._idle.remove(idle)
                    return idle
        return None

    def _refill(self) -> None:
        """Request idle workers up to the number wanted; do not wait for them."""
        with self._lock:
            try:
                while len(self._idle) < self._warm:
                    self._idle.append(self._request(Kind.WARM, None))
            except (RequestLost, OSError):
                pass  # the next birth tries again
            for idle in self._idle:
                idle.poll()

    def _request(self, kind: Kind, request: Request | None) -> Birth:
        serial = next(self._serials)
        ours, theirs = answer_pair()
        birth = Birth(self, request, serial, ours)
        body, fds = (request.body, request.fds) if request is not None else ({}, [])
        timeout = 0 if request is None else None
        try:
            with theirs:
                body = {**body, "serial": serial}
                send(self._channel, kind, body, [theirs.fileno(), *fds], timeout)
        except OSError as error:
            birth.abandon()
            if isinstance(error, BrokenPipeError | ConnectionResetError):
                raise RequestLost from None
            raise
        except BaseException:
            birth.discard()
            raise
        return birth

    def has_environment(self) -> bool:
        """Return whether our environment is still that with which the zygote was started."""
        return _environment() == self._environment

    def last_born(self, serial: int) -> int:
        """Return the pid that the kernel wrote for this request, or 0.

        0 as well where there were so many requests since that its slot is another's.
        """
        at = slot_of(serial)
        found = SLOT.unpack_from(self._slots, at)
        written, pid = SLOT.unpack_from(self._slots, at)  # twice: it may be written just now
        return pid if found == (serial, pid) and written == serial else 0


def _environment() -> object:
    """Return os.environ for comparison; its own would decode every variable."""
    raw: object = getattr(os.environ, "_data", None)
    return dict(raw) if isinstance(raw, dict) else os.environ.copy()


def _import_path() -> list[str]:
    """Return our path for imports; the current directory is in it by its name, as of now."""
    try:
        here = [os.getcwd()]
    except FileNotFoundError:
        here = []
    return [found for path in sys.path for found in ([path] if path else here)]


def _start(channel: FdChannel, configuration: Configuration) -> Process:
    if not sys.executable:
        raise ZygoteError("there is no interpreter to start: sys.executable is empty")
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    if not sys.flags.safe_path:  # nothing in the current directory stands in for what it imports
        flags.append("-P")
    # Workers are children of the thread that starts the zygote, and their parent-death signals
    # are sent when that thread ends: so it must be one that lives as long as we do.
    return spawn(
        [sys.executable, *flags, "-c", _CODE, _ROOT],
        fds={0: DEVNULL, CHANNEL: channel},
        env=None if configuration.env is None else dict(configuration.env),
        rlimits=dict(configuration.rlimits),
        signal_mask=configuration.signal_mask,
        default_signals=configuration.default_signals,
        parent_death_signal=signal.SIGKILL,
        parent_death_scope=configuration.scope,
    )


def _main_module() -> dict[str, str]:
    """Return where the program's main module comes from, as multiprocessing finds it."""
    from multiprocessing.spawn import get_preparation_data

    data = get_preparation_data("zygote")
    return {key: data[key] for key in ("init_main_from_name", "init_main_from_path") if key in data}
