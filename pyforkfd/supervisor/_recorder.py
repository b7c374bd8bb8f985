"""The record that a successor goes on from: what of the supervisor goes into it, and when."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from .processes._generations import Generations
from .processes._resources import Resources
from .state._events import Action
from .state._model import State
from .state._step import Step
from .succession._handover import Handover

log = logging.getLogger("pyforkfd.supervisor")


class Recorder:
    """Writes the record."""

    def __init__(self, resources: Resources) -> None:
        """Write nothing yet.

        Args:
            resources: borrowed.
        """
        self._sockets, self._output = resources.sockets, resources.output
        self._metrics, self._succession = resources.watch.metrics, resources.succession

    def save_step(self, taken: Step, generations: Generations) -> None:
        """Write what a step has changed, before any of its actions is performed."""
        succession = self._succession
        if succession.wants_whole:
            succession.resources["metrics"] = self._metrics.state()
        handover = self._handover(taken.state, taken.actions, generations)
        succession.save_step(handover, taken.workers, {"metrics": self._metrics.changes()})

    def save_all(self, state: State, generations: Generations) -> bool:
        """Write the record for an upgrade; return False where there is no memory for it."""
        resources = self._succession.resources
        resources["metrics"] = self._metrics.state()
        try:
            # A successor of a supervisor that was killed does not know where that was.
            resources["output"] = self._output.unfinished()
            self._succession.save(self._handover(state, (), generations))
        except OSError as error:
            log.error("upgrade: nothing has changed: %s", error)
            return False
        finally:
            del resources["output"]
        return True

    def _handover(self, state: State, todo: Sequence[Action], generations: Generations) -> Handover:
        return Handover(
            state=state,
            service=generations.serving,
            services=generations.all(),
            todo=tuple(todo),
            sockets=self._succession.put_sockets(self._sockets.all()),
            directory=self._succession.directory,
            resources=self._succession.resources,
        )
