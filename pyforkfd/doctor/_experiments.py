"""Experiments: a statement, a trial of it, and a control that the trial must distinguish."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["confirmed", "contradicted", "unproven", "impossible"]
"""The outcome of an experiment.

- ``confirmed``: the statement was observed, and was not observed in the control.
- ``contradicted``: something else was observed.
- ``unproven``: the same was observed in the control, so the trial proves nothing.
- ``impossible``: this kernel, sandbox or Python cannot run the experiment.
"""

_MISSING = {errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}


class Impossible(Exception):
    """An experiment cannot be run here; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The result of one trial: whether the statement holds, and what was observed."""

    holds: bool
    seen: str


Trial: TypeAlias = Callable[[bool], Observation]
"""Runs an experiment; with True its control, observed in the same way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one experiment on this machine.

    Attributes:
        name: of the experiment.
        section: its topic.
        statement: true, if the verdict is ``confirmed``.
        belief: the common belief that the statement corrects.
        verdict: ``confirmed``, ``contradicted``, ``unproven`` or ``impossible``.
        seen: what was observed; or why the experiment is impossible.
        control: what the control does otherwise.
        control_seen: what was observed in the control; empty if it was not run.
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
        """Whether the statement was confirmed, or the experiment is impossible here."""
        return self.verdict in ("confirmed", "impossible")


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A statement and its trial.

    Attributes:
        name: for reports.
        section: its topic.
        statement: to be shown.
        belief: the common belief that the statement corrects.
        control: what the control does otherwise, so that the statement does not hold.
        trial: runs the experiment or its control.
    """

    name: str
    section: str
    statement: str
    belief: str
    control: str
    trial: Trial

    def run(self) -> Outcome:
        """Run the experiment and, if the statement holds, its control."""
        try:
            observed = self._observe(control=False)
            control = self._observe(control=True) if observed.holds else None
        except Impossible as reason:
            return self._outcome("impossible", str(reason), "")
        if control is None:
            return self._outcome("contradicted", observed.seen, "")
        verdict: Verdict = "unproven" if control.holds else "confirmed"
        return self._outcome(verdict, observed.seen, control.seen)

    def _observe(self, *, control: bool) -> Observation:
        try:
            return self.trial(control)
        except Impossible:
            raise
        except OSError as error:
            if error.errno in _MISSING:
                raise Impossible(str(error)) from None
            unexpected: Exception = error
        except Exception as error:
            unexpected = error
        # An error is no confirmation: of the statement, nor of the control's difference.
        return Observation(control, f"{type(unexpected).__name__}: {unexpected}")

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
    """Experiments on one topic, in the order of their definition."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._experiments: list[Experiment] = []

    def add(self, name: str, trial: Trial, *, statement: str, belief: str, control: str) -> None:
        """Append an experiment."""
        self._experiments.append(
            Experiment(
                name=name,
                section=self.title,
                statement=statement,
                belief=belief,
                control=control,
                trial=trial,
            )
        )

    def experiment(self, *, statement: str, belief: str, control: str) -> Callable[[Trial], Trial]:
        """Return a decorator for the trial of an experiment, which gets the function's name."""

        def append(trial: Trial) -> Trial:
            name = getattr(trial, "__name__", "").replace("_", "-")
            self.add(name, trial, statement=statement, belief=belief, control=control)
            return trial

        return append

    def __iter__(self) -> Iterator[Experiment]:
        return iter(self._experiments)


def fork() -> int:
    """Call os.fork() without its warning of threads: the child makes a few calls and exits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12, of threads
        return os.fork()
