"""The record that a supervisor writes for its successor, another program or the same again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from pyforkfd.supervisor.spec._spec import Component, Service
from pyforkfd.supervisor.state._events import Action, Reloaded, Spawn
from pyforkfd.supervisor.state._model import State

from ._codec import CodecError, Specs, decode, encode

VERSION = 3
"""The version of the record: raised when an older program would misread it; new fields do not."""


class HandoverError(ValueError):
    """A predecessor's record or descriptors cannot be taken over; the message has the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """The state of a supervisor, without descriptors, to which it refers by name.

    Worker 12 has a pidfd ``p12``, a channel ``c12`` and a notify socket ``n12``.

    Attributes:
        state: of the state machine; its times are CLOCK_MONOTONIC's, which runs since boot.
        service: the specification that runs.
        services: generation -> its specification, of all that still have workers.
        todo: actions of the last step.
        sockets: name of a descriptor -> (address, shards, position).
        directory: path of the directory of the notify sockets.
        resources: part of the supervisor -> its own record, plain values.
    """

    state: State
    service: Service
    services: Mapping[int, Service]
    todo: tuple[Action, ...]
    sockets: Mapping[str, tuple[str, bool, int]]
    directory: str
    resources: Mapping[str, Any] = field(default_factory=dict)

    def remaining(self, done: int) -> list[Action]:
        """Return the actions that are left.

        Workers without a pid are to be started, whichever step demanded it: one may have waited
        for its zygote.

        Args:
            done: number of actions of ``todo`` that were performed.
        """
        absent = [Spawn(w.id) for w in self.state.workers.values() if w.pid is None]
        return [*(a for a in self.todo[done:] if not isinstance(a, Spawn)), *absent]

    def promised(self, done: int) -> int:
        """Return the number of requests for another generation that have no outcome yet.

        Args:
            done: number of actions of ``todo`` that were performed.
        """
        outcomes = sum(isinstance(action, Reloaded) for action in self.todo[done:])
        return outcomes + (self.state.pending is not None)


def dump(handover: Handover, specs: Specs | None = None) -> bytes:
    """Encode a handover as JSON, in one line.

    Args:
        handover: the state of a supervisor.
        specs: gets the components that were encoded; None: nobody needs them.
    """
    specs = Specs() if specs is None else specs
    body = {field.name: encode(getattr(handover, field.name), specs) for field in fields(handover)}
    body["specs"] = [encode(spec) for spec in specs.all]
    return to_json({"version": VERSION, **body})


def to_json(plain: object) -> bytes:
    """Write plain values in one line, without its end."""
    return json.dumps(plain, separators=(",", ":")).encode()


def check_savable(service: Service) -> None:
    """Check that a record can have a specification.

    Raises:
        CodecError: a value of it cannot be pickled.
        ValueError: a value of it is no JSON.
    """
    json.dumps(encode(service))


def load(data: bytes) -> tuple[Handover, list[Component]]:
    """Decode a handover that :func:`dump` has encoded.

    Returns:
        The handover, and the components that it and the changes after it refer to by number.

    Raises:
        HandoverError: the data has another version, or is damaged.
    """
    with damage_refused():
        body = json.loads(data)
        if body["version"] != VERSION:
            raise HandoverError(
                f"handover: the record has version {body['version']}, this program reads version "
                f"{VERSION} only: stop the service, then start it with this program"
            )
        specs = [decode(spec) for spec in body["specs"]]
        known = {field.name for field in fields(Handover)}
        values = {name: decode(body[name], specs) for name in known & body.keys()}
        return Handover(**values), specs


@contextmanager
def damage_refused() -> Iterator[None]:
    """Raise what a damaged record leads to as a HandoverError."""
    try:
        yield
    except HandoverError:
        raise
    except (CodecError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise HandoverError(f"handover: {error}") from None
