"""Popen: the standard class on our engine, with our options."""

from __future__ import annotations

import array
import fcntl
import os
import subprocess
import termios
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BufferedReader, BufferedWriter
from types import TracebackType
from typing import IO, Any, AnyStr, TypeAlias, Unpack, cast

from pyforkfd import _core
from pyforkfd._options import Options, names, refuse_unknown
from pyforkfd._process import exit_status
from pyforkfd._spawn import Command
from pyforkfd._types import HasFileno, StrPath

from ._seams import demand_known, execute_child

File: TypeAlias = int | IO[Any] | HasFileno | None
"""A standard stream: None, PIPE, DEVNULL, STDOUT, a descriptor, or an object with one; borrowed."""

_KNOWN = names(Options)
_FITS = 4096  # PIPE_BUF: a new pipe takes it without blocking
_LOST = 255  # as asyncio reports a status that is lost


class StartOptions(Options, total=False):
    """The options of Popen beside the program and its streams, here and on asyncio."""

    executable: StrPath | None
    preexec_fn: Callable[[], Any] | None
    close_fds: bool
    cwd: StrPath | None
    env: Mapping[str, str] | Mapping[bytes, bytes] | None
    restore_signals: bool
    start_new_session: bool
    pass_fds: Iterable[int]
    user: str | int | None
    group: str | int | None
    extra_groups: Iterable[str | int] | None
    umask: int
    pipesize: int
    process_group: int | None


class PopenOptions(StartOptions, total=False):
    """All arguments of Popen: the standard module's own names, and :class:`Options`."""

    args: StrPath | Sequence[StrPath]
    bufsize: int
    stdin: File
    stdout: File
    stderr: File
    shell: bool
    universal_newlines: bool | None
    encoding: str | None
    errors: str | None
    text: bool | None


class Popen(subprocess.Popen[AnyStr]):
    """:class:`subprocess.Popen`, whose child is started as :meth:`Command.spawn` does.

    It takes the arguments of the standard class, with the same meaning, and by keyword those
    options of :class:`Command` that the standard class does not have: :class:`Options`.
    ``fds`` and ``listen`` add to ``pass_fds`` and
    to stdin, stdout and stderr; one number may come from one of them only.  ``user`` is the
    standard's: it brings no groups with it.

    The object holds the child's pidfd: signals go through that, and waits with a time-out
    sleep in poll(2) where the standard ones poll again and again.

    Attributes:
        pipes: our ends of the pipes of ``fds``, by the child's number; owned by this object.

    Raises:
        OSError: as in the standard class.  Where the program or the directory is wrong, its
            cause is the :class:`SpawnError`; for all else it is the SpawnError itself.
        TypeError, ValueError, LookupError: a value makes no sense; nothing was started.
    """

    _forkfd_options: _core.SpawnPlan | None = None
    _pidfd: int = -1
    _writable: frozenset[int] = frozenset()
    pipes: dict[int, BufferedReader | BufferedWriter]

    def __init__(
        self,
        args: StrPath | Sequence[StrPath],
        bufsize: int = -1,
        executable: StrPath | None = None,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        preexec_fn: Callable[[], Any] | None = None,
        close_fds: bool = True,
        shell: bool = False,
        cwd: StrPath | None = None,
        env: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
        universal_newlines: bool | None = None,
        startupinfo: None = None,
        creationflags: int = 0,
        restore_signals: bool = True,
        start_new_session: bool = False,
        pass_fds: Iterable[int] = (),
        *,
        user: str | int | None = None,
        group: str | int | None = None,
        extra_groups: Iterable[str | int] | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        text: bool | None = None,
        umask: int = -1,
        pipesize: int = -1,
        process_group: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        demand_known()
        self.pipes = {}
        self._forkfd_options = _core.SpawnPlan()
        pass_fds = set(pass_fds)
        if options:
            if not options.keys() <= _KNOWN:
                refuse_unknown("Popen", options, _KNOWN | names(PopenOptions))
            if preexec_fn is not None:
                raise ValueError("preexec_fn: needs the standard path, without options of ours")
            options.setdefault("default_signals", ())  # restore_signals decides that
            command = Command(
                [b"-"],
                executable=b"/-",  # the standard part has the program
                new_session=bool(start_new_session),
                **options,
            )
            self._demand_one_source(command, pass_fds, (stdin, stdout, stderr))
            self._forkfd_options = command._plan
            self._writable = command._writable
        super().__init__(
            cast(Any, args),
            bufsize,
            executable,
            cast(Any, stdin),
            cast(Any, stdout),
            cast(Any, stderr),
            preexec_fn,
            close_fds,
            shell,
            cwd,
            env,
            universal_newlines,
            startupinfo,
            creationflags,
            restore_signals,
            start_new_session,
            pass_fds,
            user=user,
            group=group,
            extra_groups=extra_groups,
            encoding=encoding,
            errors=errors,
            text=text,
            umask=umask,
            pipesize=pipesize,
            process_group=process_group,
        )

    _execute_child = execute_child

    def _close_pipe_fds(self, *ends: int) -> None:
        # As the standard one, whose ExitStack costs as much as the pipes.
        closing = {getattr(self, "_devnull", None)} - {None}
        for childs, ours in ((ends[0], ends[1]), (ends[3], ends[2]), (ends[5], ends[4])):
            if childs != -1 and ours != -1:
                closing.add(childs)
        self._closed_child_pipe_fds = True
        for fd in closing:
            os.close(cast(int, fd))

    def _demand_one_source(
        self, command: Command, pass_fds: set[int], standard: tuple[object, object, object]
    ) -> None:
        mapped = {*(command.fds or ()), *range(3, 3 + len(command.listen or ()))}
        named = {*pass_fds, *(number for number, file in enumerate(standard) if file is not None)}
        if both := mapped & named:
            raise ValueError(
                f"fds, listen: child's {sorted(both)} also in pass_fds, stdin, stdout or stderr"
            )

    def _started(self, pidfd: int, ends: dict[int, int]) -> None:
        """Take the pidfd and the pipes of the child that execute_child has started."""
        self._pidfd = pidfd
        for target, fd in ends.items():
            self.pipes[target] = os.fdopen(fd, "wb" if target in self._writable else "rb")  # type: ignore[assignment]

    @property
    def pidfd(self) -> int:
        """The child's pidfd, readable once it has ended; borrowed, -1 once it is reaped."""
        return self._pidfd

    def send_signal(self, signum: int) -> None:
        """Send a signal through the pidfd; do nothing once the child is known to have ended."""
        self.poll()
        number = self._duplicate()
        if number < 0:
            super().send_signal(signum)
            return
        try:
            _core.send_signal(number, signum)
        except ProcessLookupError:
            pass  # it has ended since, and other code has reaped it
        finally:
            os.close(number)

    def _internal_poll(self, _deadstate: int | None = None, *rest: object) -> int | None:
        # As the standard one, but for a status that waitpid(2) cannot give: never 0.
        lock = self._waitpid_lock  # type: ignore[attr-defined]
        if self.returncode is None and lock.acquire(blocking=False):
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid == self.pid:
                        self._handle_exitstatus(status)
            except OSError:
                if _deadstate is not None:
                    self.returncode = _deadstate
            finally:
                lock.release()
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        # The lock is held.
        try:
            return os.waitpid(self.pid, wait_flags)
        except ChildProcessError:
            return self.pid, self._status_after_reaping()

    def _status_after_reaping(self) -> int:
        """Return the wait status of a child that was reaped elsewhere, or ignored with SIGCHLD.

        The pidfd still has it on Linux 6.15 and later; else it is lost.
        """
        reaped = _core.reap(self._pidfd) if self._pidfd >= 0 else None
        status = None if reaped is None else exit_status(reaped)
        if status is None or status.lost:
            warnings.warn(
                f"child {self.pid}: exit status lost, reporting {_LOST}: SIGCHLD is ignored, or "
                "other code has waited for the child",
                RuntimeWarning,
                stacklevel=4,
            )
            return _LOST << 8
        if status.signal is not None:
            return status.signal | (0x80 if status.core_dumped else 0)
        assert status.code is not None
        return status.code << 8

    def _wait(self, timeout: float | None) -> int:
        # Asleep in poll(2) until then; without a time-out waitpid(2) sleeps as well.
        number = -1 if timeout is None else self._duplicate()
        if number >= 0:
            try:
                ended = _core.wait_pidfd(number, timeout)
            finally:
                os.close(number)
            if not ended and self.returncode is None:
                raise subprocess.TimeoutExpired(self.args, cast(float, timeout))
        return cast(int, super()._wait(timeout))  # type: ignore[misc]

    def _communicate(
        self,
        input: Any,  # noqa: A002
        endtime: float | None,
        orig_timeout: float | None,
    ) -> tuple[Any, Any]:
        # In one native loop, where the input fits into the pipe; as the standard one otherwise.
        mine: Any = self
        files: tuple[IO[Any] | None, ...] = (self.stdout, self.stderr)
        closed = any(file is not None and file.closed for file in (self.stdin, *files))
        if mine._communication_started or closed or not self._fed(input):
            return super()._communicate(input, endtime, orig_timeout)  # type: ignore[misc,no-any-return]
        if self.stdin is not None:
            mine._stdin_write(input)
        outputs: list[list[bytes]] = [[], []]
        mine._fileobj2output = dict(zip(files, outputs, strict=True))  # a later call goes on
        one, two = (-1 if file is None else file.fileno() for file in files)
        if not _core.collect(one, two, mine._remaining_time(endtime), *outputs):
            mine._check_timeout(endtime, orig_timeout, *outputs, skip_check_and_raise=True)
        for file in files:
            if file is not None:
                file.close()
        self.wait(timeout=mine._remaining_time(endtime))
        found: list[Any] = [None, None]
        for number, file in enumerate(files):
            if file is not None:
                found[number] = b"".join(outputs[number])
                if mine.text_mode:
                    text: Any = file
                    found[number] = mine._translate_newlines(
                        found[number], text.encoding, text.errors
                    )
        return found[0], found[1]

    def _fed(self, input: Any) -> bool:  # noqa: A002
        """Whether the input can be written at once, without blocking."""
        if not input or self.stdin is None:
            return not input
        if not isinstance(input, bytes) or len(input) > _FITS:
            return False
        try:
            self.stdin.flush()
        except BrokenPipeError:
            return True
        waiting = array.array("i", [0])
        fcntl.ioctl(self.stdin.fileno(), termios.FIONREAD, waiting)
        return waiting[0] == 0

    def _duplicate(self) -> int:
        """Duplicate the pidfd; return -1 while another thread reaps the child and closes it."""
        lock = self._waitpid_lock  # type: ignore[attr-defined]
        if not lock.acquire(blocking=False):
            return -1
        try:
            return os.dup(self._pidfd) if self._pidfd >= 0 else -1
        finally:
            lock.release()

    def _handle_exitstatus(self, *args: Any, **kwargs: Any) -> None:
        super()._handle_exitstatus(*args, **kwargs)  # type: ignore[misc]
        self._close_pidfd()  # reaped; the lock is held

    def _close_pidfd(self) -> None:
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in self.pipes.values():
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # buffered for a child that no longer reads
        super().__exit__(kind, value, trace)

    def __del__(self) -> None:
        try:
            super().__del__()
        finally:
            self._close_pidfd()
