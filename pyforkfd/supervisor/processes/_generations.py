"""The specification of each generation that still has workers, and what only it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pyforkfd.supervisor.spec._spec import Service
from pyforkfd.supervisor.state._index import index_of
from pyforkfd.supervisor.state._model import Crew, State

from ._sockets import Sockets
from ._zygotes import Zygotes, zygote_for


class Generations:
    """Specifications by generation; opens their listeners, and closes what none needs.

    Attributes:
        serving: the specification of the generation that serves.
    """

    def __init__(
        self,
        serving: Service,
        services: Mapping[int, Service],
        *,
        sockets: Sockets,
        zygotes: Zygotes,
    ) -> None:
        """Begin with those that are known.

        Args:
            serving: see the attribute.
            services: generation -> specification; at least one.
            sockets: borrowed.
            zygotes: borrowed.
        """
        self.serving = serving
        self._services = dict(services)
        self._sockets = sockets
        self._zygotes = zygotes
        self._cleared_for: object = None  # the needs at the last clearing

    def __getitem__(self, generation: int) -> Service:
        """Return the specification of a generation."""
        return self._services[generation]

    def all(self) -> dict[int, Service]:
        """Return a copy of all: generation -> specification."""
        return dict(self._services)

    def add(self, generation: int, service: Service) -> None:
        """Add a generation, which boots."""
        self._services[generation] = service

    def serve(self, generation: int) -> None:
        """Note that a generation serves from now on."""
        self.serving = self._services.get(generation, self.serving)

    def open_shards(self, crew: Crew, count: int) -> None:
        """Bind the listeners of so many positions of a crew, unless they are bound.

        Raises:
            OSError, ValueError: as :meth:`Sockets.get`.
        """
        self._sockets.open_positions(self._services[crew.generation], crew.spec, count)

    def are_as_used(self, state: State) -> bool:
        """Return whether crews and workers need what they needed at the last clearing."""
        return self._needs(state) == self._cleared_for

    @staticmethod
    def _needs(state: State) -> object:
        parts = [(crew.spec, crew.generation, crew.widest) for crew in _crews(state)]
        return parts, frozenset(index_of(state).generations)

    def discard_unused(self, state: State) -> None:
        """Close the listeners and zygotes, and forget the specifications, that no crew needs."""
        self._cleared_for = self._needs(state)
        crews, alive = list(_crews(state)), index_of(state).generations.keys()
        used = {crew.generation for crew in crews}.union(alive)
        used.add(max(self._services))
        self._services = {n: service for n, service in self._services.items() if n in used}
        self._sockets.keep(
            (
                (self._services[crew.generation].listeners[name], position)
                for crew in crews
                for name in crew.spec.listen
                for position in range(crew.widest)
            ),
            shared=(
                (self._services[worker.generation].listeners[name], worker.position)
                for worker in state.workers.values()
                for name in worker.spec.listen
            ),
        )
        self._zygotes.keep(
            (zygote_for(self._services[crew.generation], crew.spec).name, crew.generation)
            for crew in crews
            if crew.spec.function is not None
        )


def _crews(state: State) -> Iterator[Crew]:
    yield from state.crews.values()
    if state.pending is not None:
        yield from state.pending.crews.values()
    if state.previous is not None:
        yield from state.previous.crews.values()
