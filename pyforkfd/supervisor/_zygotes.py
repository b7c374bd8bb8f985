"""Zygotes of the supervisor: one for each name and generation, started beside the loop."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from pyforkfd._fd import Fd
from pyforkfd.zygote import Zygote

from ._spec import ZygoteSpec

Key = tuple[str, int]


@dataclass(slots=True)
class _Entry:
    zygote: Zygote
    started: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class Zygotes:
    """A new generation is to run new code, so it has zygotes of its own.

    What a zygote imports takes as long as it takes, and must not stop the loop: it is
    awaited in a thread, the only kind there is in a supervisor, and only while one starts.
    """

    def __init__(self) -> None:
        self._entries: dict[Key, _Entry] = {}
        self._event = Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def fileno(self) -> int:
        """Readable when a zygote has started or failed; borrowed."""
        return self._event.fileno()

    def read(self) -> None:
        """Take note, so that fileno() waits for the next."""
        try:
            os.eventfd_read(self._event.fileno())
        except BlockingIOError:
            pass

    def get(self, spec: ZygoteSpec, generation: int) -> Zygote | None:
        """A started zygote; None while it starts.

        Raises:
            ZygoteError, SpawnError: it could not be started; the next call tries again.
        """
        key = (spec.name, generation)
        entry = self._entries.get(key)
        if entry is None:
            env = None if spec.env is None else {**os.environ, **spec.env}
            zygote = Zygote(preload=spec.preload, setup=spec.setup, env=env)
            entry = self._entries[key] = _Entry(zygote)
            name = f"start of zygote {spec.name}"
            threading.Thread(target=self._start, args=(entry,), name=name, daemon=True).start()
        if not entry.started.is_set():
            return None
        if entry.error is not None:
            del self._entries[key]
            raise entry.error
        return entry.zygote

    def _start(self, entry: _Entry) -> None:
        try:
            entry.zygote.start()
        except BaseException as error:
            entry.error = error
        entry.started.set()
        os.eventfd_write(self._event.fileno(), 1)

    def keep(self, wanted: Iterable[Key]) -> None:
        """End all but these; their workers live on."""
        for key in self._entries.keys() - set(wanted):
            if self._entries[key].started.is_set():
                self._entries.pop(key).zygote.close()

    def close(self) -> None:
        """End all of them, also those that have not started yet."""
        for entry in self._entries.values():
            entry.started.wait(1.0)  # one that hangs ends with us
            if entry.started.is_set():
                entry.zygote.close()
        self._entries.clear()
        self._event.close()
