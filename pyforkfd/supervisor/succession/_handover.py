"""What a supervisor tells its successor, whether that is another program or the same again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pyforkfd.supervisor.spec._spec import Component, Service
from pyforkfd.supervisor.state._events import Action, Reloaded, Spawn
from pyforkfd.supervisor.state._model import State

from ._codec import CodecError, decode, encode

VERSION = 2
"""Raised when a successor of another version would misunderstand; new fields need no other."""


class HandoverError(ValueError):
    """What a predecessor has left cannot be taken over; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Everything that is known, but for descriptors, which are known by name.

    A worker 12 has a pidfd ``p12`` and a channel ``c12``.

    Attributes:
        state: of the state machine; its times are of the clock that runs since the machine started.
        service: what runs.
        services: the same by generation, for all that still have workers.
        todo: what the last step demanded.
        sockets: descriptor -> (address, shards, position).
        directory: where the notify socket is.
        resources: resource -> its state, plain values.
    """

    state: State
    service: Service
    services: Mapping[int, Service]
    todo: tuple[Action, ...]
    sockets: Mapping[str, tuple[str, bool, int]]
    directory: str
    resources: Mapping[str, Any] = field(default_factory=dict)

    def remaining(self, done: int) -> list[Action]:
        """What is still to be done after so many of ``todo``.

        Workers that were to be started and are not known to have been are to be started,
        whoever demanded that and when: a zygote may just have been awaited.
        """
        absent = [Spawn(w.id) for w in self.state.workers.values() if w.pid is None]
        return [*(a for a in self.todo[done:] if not isinstance(a, Spawn)), *absent]

    def promised(self, done: int) -> int:
        """How many requests for another generation have had no answer."""
        answers = sum(isinstance(action, Reloaded) for action in self.todo[done:])
        return answers + (self.state.pending is not None)


def dump(handover: Handover) -> bytes:
    """As JSON."""
    specs: list[Component] = []
    body = {field.name: encode(getattr(handover, field.name), specs) for field in fields(handover)}
    body["specs"] = [encode(spec) for spec in specs]
    return json.dumps({"version": VERSION, **body}, separators=(",", ":")).encode()


def load(data: bytes) -> Handover:
    """What :func:`dump` has written.

    Raises:
        HandoverError: it is of another version, or damaged.
    """
    try:
        body = json.loads(data)
        if body["version"] != VERSION:
            raise HandoverError(
                f"handover: the record has version {body['version']}, this program reads version "
                f"{VERSION} only: stop the service, then start it with this program"
            )
        specs = [decode(spec) for spec in body["specs"]]
        known = {field.name for field in fields(Handover)}
        return Handover(**{name: decode(body[name], specs) for name in known & body.keys()})
    except HandoverError:
        raise
    except (CodecError, LookupError, TypeError, ValueError) as error:
        raise HandoverError(f"handover: {error}") from None
