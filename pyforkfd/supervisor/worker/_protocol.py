"""What comes over a worker's channel, and who it says the worker is: parsed, no more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyforkfd as ff

VARIABLE = "FORKFD_WORKER"


@dataclass(frozen=True, slots=True)
class Order:
    """One message of the supervisor's.

    Attributes:
        name: "drain", "pause", ...
        body: the whole message.
        fds: name -> descriptor that came with it.  Closed when all callbacks have returned;
            ``detach()`` what is to stay.
    """

    name: str
    body: Mapping[str, Any]
    fds: Mapping[str, ff.Fd]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """FORKFD_WORKER, taken apart.  Numbers of descriptors are None where there is none.

    Attributes:
        component: its name.
        worker: the worker's number, never used twice.
        position: which of its component's workers it is, from 0.
        generation: of its component.
        channel: the descriptor of the channel.
        page: that of the page of slots.
        slot: which of them is the worker's.
        log: that of the shared log.
        listen: listener -> descriptor, where they are given by number.
        by_channel: listeners come over the channel.
    """

    component: str
    worker_id: int
    position: int
    generation: int
    channel: int | None = None
    page: int | None = None
    slot: int | None = None
    log: int | None = None
    listen: Mapping[str, int]
    by_channel: bool = False


def identify(text: str) -> Identity:
    """Take FORKFD_WORKER apart.

    Raises:
        ValueError: it is not as the supervisor writes it.
    """
    values = dict(part.partition("=")[::2] for part in text.split())
    listen = values.get("listen", "")
    by_channel = listen == "channel"
    pairs = [] if by_channel or not listen else [p.rpartition(":") for p in listen.split(",")]
    try:
        numbers = {
            name: int(values[name]) for name in ("channel", "page", "slot", "log") if name in values
        }
        return Identity(
            component=values["component"],
            worker_id=int(values["worker"]),
            position=int(values["position"]),
            generation=int(values["generation"]),
            listen={name: int(number) for name, _, number in pairs},
            by_channel=by_channel,
            **numbers,
        )
    except (LookupError, ValueError) as error:
        raise ValueError(f"{VARIABLE}={text!r}: {error!r}") from None


def parse(message: ff.Received) -> Order:
    """An order; its descriptors stay the message's.

    Raises:
        ValueError: it is none.
    """
    body = json.loads(message.data)
    if not isinstance(body, dict) or not isinstance(body.get("order"), str):
        raise ValueError(f"not an order: {message.data[:80]!r}")
    names = body.get("fds", [])
    if not isinstance(names, list) or len(names) != len(message.fds):
        raise ValueError(f"order {body['order']}: {len(message.fds)} descriptors for {names!r}")
    return Order(body["order"], body, dict(zip(map(str, names), message.fds, strict=True)))
