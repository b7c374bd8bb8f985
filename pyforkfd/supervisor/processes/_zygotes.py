"""Zygotes of the supervisor: one for each name and generation, started beside the loop."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from pyforkfd._closing import Closing
from pyforkfd._trusted_paths import walk
from pyforkfd.supervisor._shortage import child_limits
from pyforkfd.supervisor.spec._spec import Component, Service, ZygoteSpec
from pyforkfd.zygote import Zygote

Key = tuple[str, int]
_PATIENCE = 10.0  # seconds for a worker, whose module is imported already, to be born


class Zygotes(Closing):
    """The zygotes in use, by name and generation: a new generation runs new code.

    The imports of a zygote may take long and must not stop the loop: its start is begun, and
    its answer read when that is there.  No thread: one that started a zygote would be the
    parent of its workers, and would end when another program is executed in our place.
    """

    def __init__(self) -> None:
        self._zygotes: dict[Key, Zygote] = {}
        self._starting: dict[Key, int] = {}  # those that have not answered -> where they will
        self._started: set[Key] = set()
        self._epoll = select.epoll()

    def fileno(self) -> int:
        """Return a descriptor that is readable when a zygote has started or failed; borrowed."""
        return self._epoll.fileno()

    def read(self) -> None:
        """Note which zygotes have answered, so that fileno() waits for the next."""
        answered = {fd for fd, _ in self._epoll.poll(0)}
        for key, fd in list(self._starting.items()):
            if fd in answered:
                self._epoll.unregister(fd)
                del self._starting[key]

    def get(
        self,
        spec: ZygoteSpec,
        generation: int,
        directories: Callable[[], Iterable[str]] = tuple,
    ) -> Zygote | None:
        """Return a started zygote; None while it starts.

        Args:
            spec: of the zygote.
            generation: of its workers.
            directories: called when it is to be started; returns those that it imports from
                before any other.

        Raises:
            ZygoteError, SpawnError: it could not be started; the next call tries again.
        """
        key = (spec.name, generation)
        if key in self._starting:
            return None
        zygote = self._zygotes.get(key)
        if zygote is not None and key not in self._started:
            try:
                zygote.start()  # it has answered, so this does not wait
            except BaseException:
                self.keep(self._zygotes.keys() - {key})
                raise
            self._started.add(key)
        if zygote is not None and zygote.pid is not None:
            return zygote
        self.keep(self._zygotes.keys() - {key})  # one that has died since
        env = None if spec.env is None else {**os.environ, **spec.env}
        zygote = Zygote(
            preload=spec.preload,
            setup=spec.setup,
            env=env,
            rlimits=child_limits(),
            parent_death_scope="thread",
            signal_mask=(),
            default_signals=range(1, signal.NSIG),
        )
        zygote._patience = _PATIENCE
        zygote._import_first(path_with(directories(), ()))
        try:
            fd = zygote.begin()
            self._epoll.register(fd, select.EPOLLIN)
        except BaseException:
            zygote.close()
            raise
        self._starting[key] = fd
        self._zygotes[key] = zygote
        return None

    def keep(self, wanted: Iterable[Key]) -> None:
        """End all zygotes but these; the workers of the others live on."""
        for key in self._zygotes.keys() - set(wanted):
            if (fd := self._starting.pop(key, None)) is not None:
                self._epoll.unregister(fd)
            self._started.discard(key)
            self._zygotes.pop(key).close()

    def close(self) -> None:
        """End all zygotes, also those that have not started yet."""
        self.keep(())
        self._epoll.close()


def path_with(first: Iterable[str], path: Sequence[str]) -> list[str]:
    """Return a path for imports that begins with a service's own directories.

    Args:
        first: of the service.
        path: the directories after that.
    """
    own = dict.fromkeys(map(os.path.abspath, first))
    return [*own, *(directory for directory in path if directory not in own)]


def import_directories(service: Service, spec: Component) -> tuple[list[str], list[str]]:
    """Return the directories that a component's zygote imports from before any other.

    They are ``app_dir``, and the working directories of the components whose functions it has.
    One into which another user may write is none of them: the zygote has our privileges.

    Args:
        service: the specification.
        spec: a component whose worker is a function.

    Returns:
        Directories, and for each that is left out the reason.
    """
    found = [] if service.app_dir is None else [service.app_dir]
    refused = []
    for component in _of_zygote(service, spec):
        if component.cwd is None:
            continue
        root = component.privileges.chroot
        cwd = os.path.join(root, component.cwd.lstrip("/")) if root else component.cwd
        try:
            with walk(cwd) as directory:
                directory.demand_ours("the modules that functions are imported from")
        except (OSError, ValueError) as error:
            refused.append(f"{component.name}: cwd: nothing is imported from it: {error}")
        else:
            found.append(cwd)
    return found, refused


def zygote_for(service: Service, spec: Component) -> ZygoteSpec:
    """Return the zygote that makes a component's workers; its own where it names none.

    The zygote has imported the modules of its components' functions: a worker that had to
    would stop the loop meanwhile, as a spawn is over when the function was found.
    """
    if spec.zygote is None:
        return ZygoteSpec(name=f"of {spec.name}", preload=_modules([spec]))
    zygote = service.zygotes[spec.zygote]
    modules = _modules(_of_zygote(service, spec))
    preload = dict.fromkeys([*zygote.preload, *modules])  # in this order, each once
    return replace(zygote, preload=tuple(preload))


def _of_zygote(service: Service, spec: Component) -> list[Component]:
    """Return the components whose workers the zygote of one makes."""
    if spec.zygote is None:
        return [spec]
    return [other for other in service.components.values() if other.zygote == spec.zygote]


def _modules(components: Iterable[Component]) -> tuple[str, ...]:
    return tuple(c.function.partition(":")[0] for c in components if c.function is not None)
