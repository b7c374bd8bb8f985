"""multiprocessing on a zygote: what it calls a context."""

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

# What processes are handed: connections, queues and locks.
_USUAL = ["multiprocessing.connection", "multiprocessing.queues", "multiprocessing.synchronize"]
_inherited: Sequence[int] = ()  # in a worker: what its process object was pickled with


class _Inherited:
    """A descriptor within a pickled process object; takes the place of reduction.DupFd."""

    def __init__(self, index: int) -> None:
        self.index = index

    def detach(self) -> int:
        return _inherited[self.index]


class Popen:
    """A started process, as multiprocessing wants to see it."""

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
        with Fd(os.pidfd_open(os.getpid())) as us:
            tracker = _tracker()
            targets = zygote._free_targets(len(self._fds) + 2)
            numbers = dict(zip(targets, [tracker, us.fileno(), *self._fds], strict=True))
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
    """The resource tracker's descriptor.

    getfd() would have it wake up and prove that it lives, beside the worker that starts.
    """
    fd: int | None = resource_tracker._resource_tracker._fd  # type: ignore[attr-defined]
    if fd is not None:
        poll = select.poll()
        poll.register(fd, 0)  # only POLLERR: nobody reads any more
        if not poll.poll(0):
            return fd
    return resource_tracker.getfd()  # type: ignore[return-value]


def _code(process: Process) -> int | None:
    """As multiprocessing has it; 255 where somebody else took the status."""
    if process.status is None:
        return None
    return 255 if process.status.lost else process.status.returncode


class ZygoteProcess(process.BaseProcess):
    """multiprocessing's Process, started by a zygote; each context has a subclass of it."""

    _start_method = None  # in a worker the default start method is the program's own
    _made_by: ClassVar[Zygote | None] = None

    # Called for processes of the default context's class as well.
    @classmethod
    def _Popen(cls, process_obj: process.BaseProcess) -> Popen:  # noqa: N802
        return Popen(process_obj, cls._made_by or default_zygote())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A context's own class is not to be imported: in a worker it is the common one."""
        if "_made_by" in vars(type(self)):
            return _rebuilt, (self.__dict__,)
        return super().__reduce_ex__(protocol)


def _rebuilt(state: dict[str, Any]) -> ZygoteProcess:
    made = ZygoteProcess.__new__(ZygoteProcess)
    made.__dict__.update(state)
    return made


class ZygoteContext(multiprocessing.context.BaseContext):
    """A multiprocessing context: Process, Pool, Manager, queues and locks, on a zygote.

    Attributes:
        zygote: it makes the processes.
    """

    _name = "zygote"

    def __init__(self, zygote: Zygote) -> None:
        self.zygote = zygote
        self.Process: type[ZygoteProcess] = type(
            "Process", (ZygoteProcess,), {"_made_by": zygote, "__module__": __name__}
        )

    def __reduce__(self) -> Any:
        return _default_context, ()


def _default_context() -> ZygoteContext:
    return ZygoteContext(default_zygote())


def default_zygote() -> Zygote:
    """The one that the whole process shares."""
    return Zygote.shared(preload=["__main__", *_USUAL, __name__])


def run(payload: bytes, numbers: Sequence[int]) -> None:
    """What a worker does that is a multiprocessing process."""
    global _inherited
    tracker, sentinel, *_inherited = numbers
    resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
    raise SystemExit(_opened(payload)._bootstrap(parent_sentinel=sentinel))


def _opened(payload: bytes) -> Any:
    file = io.BytesIO(payload)
    process.current_process()._inheriting = True  # type: ignore[attr-defined]
    try:
        spawn.prepare(pickle.load(file))
        return pickle.load(file)
    finally:
        del process.current_process()._inheriting  # type: ignore[attr-defined]


def rehearse() -> None:
    """Do to no effect what :func:`run` does until it is another process."""
    _opened(_sample())


@functools.cache
def _sample() -> bytes:
    """What is sent for a process that is as we are; __init__ would count it."""
    us = process.current_process()
    data = {"log_to_stderr": False, "authkey": us.authkey, "name": us.name}
    state = {"_config": {"authkey": us.authkey}, "_target": rehearse, "_args": (), "_kwargs": {}}
    payload = io.BytesIO()
    multiprocessing.context.set_spawning_popen(Popen)  # type: ignore[arg-type]
    try:
        payload.write(pickle.dumps(data))
        reduction.dump(_rebuilt(state), payload)
    finally:
        multiprocessing.context.set_spawning_popen(None)
    return payload.getvalue()
