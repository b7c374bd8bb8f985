"""All experiments, in the order in which they are shown."""

from __future__ import annotations

from ._experiments import Experiment
from ._handing import LISTENERS, PASSING
from ._marks import SECTION as MARKS
from ._sharing import EPOLL, EXEC, FILES

EXPERIMENTS: tuple[Experiment, ...] = (*EXEC, *MARKS, *FILES, *LISTENERS, *PASSING, *EPOLL)
