"""The record of a running supervisor: a whole handover, then the changes of each step.

So the cost of a step grows with its changes, and not with the number of workers.  When the
changes are larger than the whole, that is written anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any

from pyforkfd._closing import Closing
from pyforkfd._fd import Fd
from pyforkfd.supervisor._shortage import is_shortage
from pyforkfd.supervisor.spec._spec import Component
from pyforkfd.supervisor.state._model import Crew, State

from . import _handover
from ._codec import Specs, decode, encode
from ._durable_text import Record
from ._handover import Handover, damage_refused, dump, to_json

log = logging.getLogger("pyforkfd.supervisor")

_SMALLEST = 1 << 16  # bytes of changes for which the whole is not written anew
_STATE = tuple(
    field.name
    for field in fields(State)
    if field.init and field.name not in ("crews", "workers", "lent")
)
_REST = ("service", "services", "sockets", "directory")


class Journal(Closing):
    """The record, in a memfd.  Owns it.

    Attributes:
        stale: whether the record is of an earlier moment, as memory was short.
    """

    def __init__(self, fd: Fd | None = None) -> None:
        """Create an empty record, or continue a predecessor's.

        Args:
            fd: the predecessor's memfd; taken.
        """
        self.stale = False
        self._record = Record(fd)
        self._last: Handover | None = None  # as it is in the record; None: no change may follow
        self._specs = Specs()
        self._size = self._changed = 0  # bytes of the whole, and of the changes after it

    def fileno(self) -> int:
        """Return the number of the memfd; borrowed."""
        return self._record.fileno()

    def read(self) -> tuple[bytes, int]:
        """Return the text, and the number of the last step's actions that are done."""
        return self._record.read()

    @property
    def wants_whole(self) -> bool:
        """Whether the next step writes the whole record."""
        return self._last is None or self._changed > max(_SMALLEST, self._size)

    def write(self, handover: Handover) -> None:
        """Write the whole record for a successor; a step after it writes the whole again.

        Raises:
            OSError: ENOMEM, ENOSPC: the record is that of an earlier moment from now on, until
                a later call succeeds.
        """
        self._specs = Specs()
        text = dump(handover, self._specs)
        self._save(text, whole=True)
        self._size, self._changed = len(text), 0

    def add(
        self, handover: Handover, workers: Collection[int], resources: Mapping[str, Any]
    ) -> None:
        """Write what a step has changed; where memory is short, log that once, and go on.

        Args:
            handover: after the step; its ``resources`` are read only where the whole is wanted.
            workers: ids of the workers that were added, changed or removed.
            resources: what has changed of the ``resources``.
        """
        known = self.stale
        try:
            if self.wants_whole or self._last is None:
                self.write(handover)
            else:
                change = _changes(self._last, handover, workers, resources, self._specs)
                text = b"\n" + to_json(change)
                self._save(text, whole=False)
                self._changed += len(text)
            self._last = handover
        except OSError as error:
            if not is_shortage(error):
                raise
            if not known:
                log.error("handover: the record is not up to date: %s", error)

    def _save(self, text: bytes, *, whole: bool) -> None:
        was_stale, self.stale, self._last = self.stale, True, None
        if whole:
            self._record.write(text)
        else:
            self._record.append(text)
        self.stale = False
        if was_stale:
            log.info("handover: the record is up to date again")

    def advance(self) -> None:
        """Count one more action of the last step as performed."""
        if not self.stale:  # or it would count actions of an earlier moment
            self._record.advance()

    def close(self) -> None:
        """Close the memfd."""
        self._record.close()


def load(text: bytes) -> Handover:
    """Decode a record.

    Raises:
        HandoverError: it has another version, or is damaged.
    """
    first, *changes = text.split(b"\n")
    handover, specs = _handover.load(first)
    if not changes:
        return handover
    with damage_refused():
        draft = _Draft(handover, specs)
        for change in changes:
            draft.apply(json.loads(change))
        return draft.result()


def _changes(
    before: Handover,
    after: Handover,
    workers: Collection[int],
    resources: Mapping[str, Any],
    specs: Specs,
) -> dict[str, Any]:
    """Return what is to be changed of a handover, as plain values."""
    old, new, first = before.state, after.state, len(specs.all)
    crews = {
        name: None if crew is None else _crew_changes(old.crews.get(name), crew, specs)
        for name in old.crews.keys() | new.crews.keys()
        if (crew := new.crews.get(name)) is not old.crews.get(name)
    }
    body = {
        "state": {
            name: encode(value, specs)
            for name in _STATE
            if (value := getattr(new, name)) is not (was := getattr(old, name)) and value != was
        },
        "workers": [[n, encode(new.workers.get(n), specs)] for n in sorted(workers)],
        "crews": crews,
        "lent": _different(old.lent, new.lent, specs) if old.lent is not new.lent else [],
        "rest": {
            name: encode(value, specs)
            for name in _REST
            if (value := getattr(after, name)) != getattr(before, name)
        },
        "resources": encode(dict(resources)),
        "todo": encode(after.todo, specs),
    }
    body["specs"] = [encode(spec) for spec in specs.all[first:]]
    return body


def _crew_changes(old: Crew | None, new: Crew, specs: Specs) -> dict[str, Any]:
    if old is None or old.generation != new.generation:
        return {"whole": encode(new, specs)}
    return {
        "plain": encode(replace(new, setbacks={}, finished=frozenset()), specs),
        "setbacks": _different(old.setbacks, new.setbacks, specs),
        "finished": sorted(new.finished - old.finished),
        "again": sorted(old.finished - new.finished),
    }


def _different(
    old: Mapping[Any, Any], new: Mapping[Any, Any], specs: Specs
) -> list[tuple[Any, Any]]:
    """List the keys and values of a mapping that differ; None for a key that is gone."""
    keys = [key for key, value in new.items() if old.get(key) is not value]
    keys += [key for key in old if key not in new]
    return [(encode(key, specs), encode(new.get(key), specs)) for key in keys]


class _Draft:
    """A handover to which changes are applied."""

    def __init__(self, handover: Handover, specs: list[Component]) -> None:
        self._specs = specs
        self._rest = {field.name: getattr(handover, field.name) for field in fields(Handover)}
        state = handover.state
        self._state = {name: getattr(state, name) for name in _STATE}
        self._workers, self._crews = dict(state.workers), dict(state.crews)
        self._lent = dict(state.lent)

    def apply(self, change: Mapping[str, Any]) -> None:
        specs = self._specs
        specs += [decode(spec) for spec in change["specs"]]
        self._state.update((name, decode(v, specs)) for name, v in change["state"].items())
        _update(self._workers, change["workers"], specs)
        _update(self._lent, change["lent"], specs)
        for name, crew in change["crews"].items():
            if crew is None:
                self._crews.pop(name, None)
            else:
                self._crews[name] = _changed_crew(self._crews.get(name), crew, specs)
        self._rest.update((name, decode(v, specs)) for name, v in change["rest"].items())
        self._rest["resources"] = _merged(self._rest["resources"], decode(change["resources"]))
        self._rest["todo"] = decode(change["todo"], specs)

    def result(self) -> Handover:
        state = State(
            **{**self._state, "workers": self._workers, "crews": self._crews, "lent": self._lent}
        )
        return Handover(**{**self._rest, "state": state})


def _changed_crew(old: Crew | None, change: Mapping[str, Any], specs: list[Component]) -> Crew:
    if old is None or "whole" in change:
        crew = decode(change["whole"], specs)
        assert isinstance(crew, Crew)
        return crew
    setbacks = dict(old.setbacks)
    _update(setbacks, change["setbacks"], specs)
    plain: Crew = decode(change["plain"], specs)
    finished = old.finished.union(change["finished"]).difference(change["again"])
    return replace(plain, setbacks=setbacks, finished=finished)


def _update(values: dict[Any, Any], change: list[tuple[Any, Any]], specs: list[Component]) -> None:
    for key, value in change:
        if value is None:
            values.pop(decode(key, specs), None)
        else:
            values[decode(key, specs)] = decode(value, specs)


def _merged(old: Any, new: Any) -> Any:
    """Return a nested mapping with the values of another."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
