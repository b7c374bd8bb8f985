"""Reasons why a descriptor is open or not, in a process or a program, on this kernel and Python.

::

    from pyforkfd import doctor
    print(doctor.why(listener, ["server"]))  # would the program have it, and why
    doctor.examine(pid).problems  # of a running process

``python -m pyforkfd doctor`` is the command.
"""

from __future__ import annotations

from collections.abc import Iterator

from ._examine import Examination, Holder, Problem, examine
from ._experiments import Outcome, Verdict
from ._features import Feature, Setting, features, settings
from ._why import Explanation, Way, why

__all__ = [
    "Examination",
    "Explanation",
    "Feature",
    "Holder",
    "Outcome",
    "Problem",
    "Setting",
    "Verdict",
    "Way",
    "examine",
    "experiments",
    "features",
    "settings",
    "why",
]


def experiments() -> Iterator[Outcome]:
    """Test statements about descriptors, fork and exec on this machine.

    Each statement is tried together with a control, for which it does not hold: only if the
    trial distinguishes the two is the statement ``confirmed``.  Forks and executes some dozen
    children, one after the other; leaves nothing behind.

    Yields:
        One outcome per statement, as soon as it is known.
    """
    from ._registry import EXPERIMENTS  # imports much of the standard library

    for experiment in EXPERIMENTS:
        yield experiment.run()
