"""Why a descriptor is there or not: of this kernel and Python, of a process, of a program.

::

    from pyforkfd import doctor
    print(doctor.why(listener, ["server"]))  # the one call
    doctor.examine(pid).problems  # what is wrong in a running process

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
    """Try on this machine what is said of descriptors, fork and exec.

    Each statement is looked at together with a control, for which it does not hold: only
    if the two can be told apart is it ``confirmed``.  Forks and executes some dozen
    children, one after the other; leaves nothing behind.

    Yields:
        One outcome per statement, as soon as it is there.
    """
    from ._registry import EXPERIMENTS  # much of the standard library

    for experiment in EXPERIMENTS:
        yield experiment.run()
