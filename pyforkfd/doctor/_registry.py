"""All experiments, in the order of the report."""

from __future__ import annotations

from ._experiments import Experiment
from ._marks import SECTION as MARKS
from ._passing import LISTENERS, PASSING
from ._sharing import EPOLL, EXEC, FILES

EXPERIMENTS: tuple[Experiment, ...] = (*EXEC, *MARKS, *FILES, *LISTENERS, *PASSING, *EPOLL)
