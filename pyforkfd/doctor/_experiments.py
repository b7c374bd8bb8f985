"""What an experiment is: a statement, a look at it, and a control that must be told apart."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["confirmed", "contradicted", "unproven", "impossible"]
"""What became of a statement.

- ``confirmed``: seen, and the control, where it does not hold, was told apart.
- ``contradicted``: something else was seen.
- ``unproven``: the control looked just the same, so the look proves nothing.
- ``impossible``: this kernel, sandbox or Python does not have what it takes.
"""

_MISSING = {errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}


class Impossible(Exception):
    """An experiment cannot be made here; says why."""


@dataclass(frozen=True, slots=True)
class Sight:
    """One look: whether what was seen is what the statement says, and what it was."""

    holds: bool
    seen: str


Look: TypeAlias = Callable[[bool], Sight]
"""Makes an experiment; True makes its control, by the same look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one experiment on this machine.

    Attributes:
        name: of the experiment.
        section: what it is about.
        statement: what is true, if the verdict is ``confirmed``.
        belief: what one hears instead.
        verdict: ``confirmed``, ``contradicted``, ``unproven`` or ``impossible``.
        seen: what was seen; or why there was nothing to see.
        control: what is done otherwise in the control.
        control_seen: what was seen then; empty if it was not made.
    """

    name: str
    section: str
    statement: str
    belief: str
    verdict: Verdict
    seen: str
    control: str
    control_seen: str

    @property
    def ok(self) -> bool:
        """The statement was confirmed, or nothing could be said."""
        return self.verdict in ("confirmed", "impossible")


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A statement and how it is tried.

    Attributes:
        name: for reports.
        section: what it is about.
        statement: what it is to show.
        belief: what one hears instead.
        control: what is done otherwise, so that the statement does not hold.
        look: makes it.
    """

    name: str
    section: str
    statement: str
    belief: str
    control: str
    look: Look

    def run(self) -> Outcome:
        """Make it, and its control."""
        try:
            sight = self._sight(control=False)
            control = self._sight(control=True) if sight.holds else None
        except Impossible as reason:
            return self._outcome("impossible", str(reason), "")
        if control is None:
            return self._outcome("contradicted", sight.seen, "")
        verdict: Verdict = "unproven" if control.holds else "confirmed"
        return self._outcome(verdict, sight.seen, control.seen)

    def _sight(self, *, control: bool) -> Sight:
        try:
            return self.look(control)
        except Impossible:
            raise
        except OSError as error:
            if error.errno in _MISSING:
                raise Impossible(str(error)) from None
            unexpected: Exception = error
        except Exception as error:
            unexpected = error
        # Neither what the statement says nor what its control shows.
        return Sight(control, f"{type(unexpected).__name__}: {unexpected}")

    def _outcome(self, verdict: Verdict, seen: str, control_seen: str) -> Outcome:
        return Outcome(
            name=self.name,
            section=self.section,
            statement=self.statement,
            belief=self.belief,
            verdict=verdict,
            seen=seen,
            control=self.control,
            control_seen=control_seen,
        )


class Section:
    """Experiments on one topic, in the order in which they are written down."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._experiments: list[Experiment] = []

    def add(self, name: str, look: Look, *, statement: str, belief: str, control: str) -> None:
        """Append one."""
        self._experiments.append(
            Experiment(
                name=name,
                section=self.title,
                statement=statement,
                belief=belief,
                control=control,
                look=look,
            )
        )

    def experiment(self, *, statement: str, belief: str, control: str) -> Callable[[Look], Look]:
        """Decorate the function that makes one; its name is the experiment's."""

        def keep(look: Look) -> Look:
            name = getattr(look, "__name__", "").replace("_", "-")
            self.add(name, look, statement=statement, belief=belief, control=control)
            return look

        return keep

    def __iter__(self) -> Iterator[Experiment]:
        return iter(self._experiments)


def fork() -> int:
    """os.fork() for a child that makes a few calls and leaves, whatever threads we have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12, of threads
        return os.fork()
