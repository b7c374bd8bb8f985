"""The identity of a worker and its descriptors: FORKFD_WORKER, written and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ._protocol import VERSION, ProtocolError, demand_version

VARIABLE = "FORKFD_WORKER"

_BY_CHANNEL = "channel"  # in place of the numbers of listeners
_NUMBERS = ("channel", "page", "log", "slot")
_MOST = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A worker's place in its service, and numbers in its descriptor table.

    Numbers are None where there is no such descriptor.

    Attributes:
        component: the component's name.
        worker_id: the worker's id, never used twice.
        position: which of its component's workers it is, from 0.
        generation: the generation of its component.
        channel: the descriptor of the channel.
        page: the descriptor of the page of slots.
        slot: the number of the worker's slot of that page.
        log: the descriptor of the shared log.
        listen: listener -> descriptor, where listeners have numbers of their own.
        by_channel: whether listeners come over the channel.
    """

    component: str
    worker_id: int
    position: int
    generation: int
    channel: int | None = None
    page: int | None = None
    slot: int | None = None
    log: int | None = None
    listen: Mapping[str, int] = field(default_factory=dict)
    by_channel: bool = False

    def encode(self) -> str:
        """Return the value of FORKFD_WORKER, which :func:`identify` reads."""
        values: dict[str, object] = {
            "component": self.component,
            "worker": self.worker_id,
            "position": self.position,
            "generation": self.generation,
            "version": VERSION,
        }
        for name in _NUMBERS:
            if (number := getattr(self, name)) is not None:
                values[name] = number
        if self.by_channel:
            values["listen"] = _BY_CHANNEL
        elif self.listen:
            values["listen"] = ",".join(f"{name}:{fd}" for name, fd in self.listen.items())
        return " ".join(f"{name}={value}" for name, value in values.items())


def identify(text: str) -> Identity:
    """Read FORKFD_WORKER.

    Args:
        text: its value, as :meth:`Identity.encode` writes it.  Without a version it is of
            version 1.

    Raises:
        ValueError: the value is malformed, or the supervisor has another version of the protocol.
    """
    values = dict(part.partition("=")[::2] for part in text.split())
    listen = values.get("listen", "")
    by_channel = listen == _BY_CHANNEL
    pairs = [] if by_channel or not listen else [p.rpartition(":") for p in listen.split(",")]
    try:
        demand_version(_number(values.get("version", "1")))
        numbers = {name: _number(values[name]) for name in _NUMBERS if name in values}
        return Identity(
            component=values["component"],
            worker_id=_number(values["worker"]),
            position=_number(values.get("position", "0")),
            generation=_number(values["generation"]),
            listen={name: _number(number) for name, _, number in pairs},
            by_channel=by_channel,
            **numbers,
        )
    except ProtocolError as error:
        raise ValueError(f"{VARIABLE}: {error}") from None
    except (LookupError, ValueError) as error:
        raise ValueError(f"{VARIABLE}={text!r}: {error!r}") from None


def _number(text: str) -> int:
    number = int(text)
    if not 0 <= number < _MOST:
        raise ValueError(f"{text!r} is out of range")
    return number
