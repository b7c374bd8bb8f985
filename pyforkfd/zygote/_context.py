"""A context of multiprocessing whose processes a zygote starts."""

from __future__ import annotations

import functools
import io
import multiprocessing.context
import os
import pickle
import select
from collections.abc import Sequence
from multiprocessing import process, reduction, resource_tracker, spawn, util
from typing import Any, ClassVar

from pyforkfd._fd import Fd
from pyforkfd._process import Process

from ._zygote import Zygote

# Most processes are passed connections, queues and locks.
_USUAL = ["multiprocessing.connection", "multiprocessing.queues", "multiprocessing.synchronize"]
_inherited: Sequence[int] = ()  # in a worker: the descriptors pickled with its process object


class _Inherited:
    """A descriptor within a pickled process object; takes the place of reduction.DupFd."""

    def __init__(self, index: int) -> None:
        self.index = index

    def detach(self) -> int:
        return _inherited[self.index]


class Popen:
    """A started process, with the interface that multiprocessing expects of it."""

    method = "zygote"
    DupFd = _Inherited

    def __init__(self, process_obj: process.BaseProcess, zygote: Zygote) -> None:
        util._flush_std_streams()  # type: ignore[attr-defined]
        self._fds: list[int] = []
        data = spawn.get_preparation_data(process_obj.name)
        payload = io.BytesIO()
        multiprocessing.context.set_spawning_popen(self)  # type: ignore[arg-type]
        try:
            payload.write(pickle.dumps(data))  # plain values; its own Pickler is for objects
            reduction.dump(process_obj, payload)
        finally:
            multiprocessing.context.set_spawning_popen(None)
        with Fd(os.pidfd_open(os.getpid())) as own_pidfd:
            tracker = _tracker()
            targets = zygote._free_targets(len(self._fds) + 2)
            numbers = dict(zip(targets, [tracker, own_pidfd.fileno(), *self._fds], strict=True))
            self._process = zygote.spawn(
                "pyforkfd.zygote._context:run", args=(payload.getvalue(), targets), fds=numbers
            )
        self.pid = self._process.pid
        self.sentinel = self._process.pidfd

    def duplicate_for_child(self, fd: int) -> int:
        self._fds.append(fd)
        return len(self._fds) - 1

    @property
    def returncode(self) -> int | None:
        return _code(self._process)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if flag == 0:
            self._process.wait()
        else:
            self._process.poll()
        return _code(self._process)

    def wait(self, timeout: float | None = None) -> int | None:
        try:
            self._process.wait(None if timeout is None else max(0.0, timeout))
        except TimeoutError:
            return None
        return _code(self._process)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.close()


def _tracker() -> int:
    """Return the resource tracker's descriptor; start the tracker if it does not run.

    getfd() would wake a running tracker to check that it is alive, beside the worker's start.
    """
    fd: int | None = resource_tracker._resource_tracker._fd  # type: ignore[attr-defined]
    if fd is not None:
        poll = select.poll()
        poll.register(fd, 0)  # POLLERR alone: the tracker has closed its end
        if not poll.poll(0):
            return fd
    return resource_tracker.getfd()  # type: ignore[return-value]


def _code(process: Process) -> int | None:
    """Return multiprocessing's exit code; 255 where another reaped the process."""
    if process.status is None:
        return None
    return 255 if process.status.lost else process.status.returncode


class ZygoteProcess(process.BaseProcess):
    """multiprocessing's Process, started by a zygote; each context has a subclass of it."""

    _start_method = None  # in a worker the default start method is the program's own
    _zygote: ClassVar[Zygote | None] = None

    # Called for processes of the default context's class as well.
    @classmethod
    def _Popen(cls, process_obj: process.BaseProcess) -> Popen:  # noqa: N802
        return Popen(process_obj, cls._zygote or default_zygote())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as the common class: a context's own cannot be imported in a worker."""
        if "_zygote" in vars(type(self)):
            return _rebuild, (self.__dict__,)
        return super().__reduce_ex__(protocol)


def _rebuild(state: dict[str, Any]) -> ZygoteProcess:
    rebuilt = ZygoteProcess.__new__(ZygoteProcess)
    rebuilt.__dict__.update(state)
    return rebuilt


class ZygoteContext(multiprocessing.context.BaseContext):
    """A multiprocessing context: Process, Pool, Manager, queues and locks, on a zygote.

    Attributes:
        zygote: the zygote that starts the processes.
    """

    _name = "zygote"

    def __init__(self, zygote: Zygote) -> None:
        self.zygote = zygote
        self.Process: type[ZygoteProcess] = type(
            "Process", (ZygoteProcess,), {"_zygote": zygote, "__module__": __name__}
        )

    def __reduce__(self) -> Any:
        return _default_context, ()


def _default_context() -> ZygoteContext:
    return ZygoteContext(default_zygote())


def default_zygote() -> Zygote:
    """Return the zygote that the whole process shares."""
    return Zygote.shared(preload=["__main__", *_USUAL, __name__])


def run(payload: bytes, numbers: Sequence[int]) -> None:
    """Run a multiprocessing process; the function of its worker."""
    global _inherited
    tracker, sentinel, *_inherited = numbers
    resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
    raise SystemExit(_unpickle(payload)._bootstrap(parent_sentinel=sentinel))


def _unpickle(payload: bytes) -> Any:
    file = io.BytesIO(payload)
    process.current_process()._inheriting = True  # type: ignore[attr-defined]
    try:
        spawn.prepare(pickle.load(file))
        return pickle.load(file)
    finally:
        del process.current_process()._inheriting  # type: ignore[attr-defined]


def rehearse() -> None:
    """Run :func:`run` without effect, up to where it becomes another process."""
    _unpickle(_sample())


@functools.cache
def _sample() -> bytes:
    """Return a payload that describes the current process; __init__ would count a new one."""
    ours = process.current_process()
    data = {"log_to_stderr": False, "authkey": ours.authkey, "name": ours.name}
    state = {"_config": {"authkey": ours.authkey}, "_target": rehearse, "_args": (), "_kwargs": {}}
    payload = io.BytesIO()
    multiprocessing.context.set_spawning_popen(Popen)  # type: ignore[arg-type]
    try:
        payload.write(pickle.dumps(data))
        reduction.dump(_rebuild(state), payload)
    finally:
        multiprocessing.context.set_spawning_popen(None)
    return payload.getvalue()
