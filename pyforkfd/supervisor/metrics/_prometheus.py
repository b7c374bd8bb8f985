"""The metrics in Prometheus' formats: a collector, and a file for node_exporter.

Requires prometheus_client, the extra ``metrics``, which is imported when it is first needed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from types import ModuleType
from typing import TYPE_CHECKING

from pyforkfd._trusted_files import split
from pyforkfd._trusted_paths import walk
from pyforkfd._types import StrPath
from pyforkfd.supervisor.spec._spec import Metrics as Config

from ._counters import BOOT_BUCKETS, Histogram, Metrics, Samples
from ._families import Family

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


_OPENMETRICS = "application/openmetrics-text"
_BOUNDS = (*map(str, BOOT_BUCKETS), "+Inf")


class MetricsUnavailableError(ImportError):
    """prometheus_client, which metrics require, is missing or too old; the text has which."""


def _client(module: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(f"prometheus_client.{module}")
    except ImportError as error:
        raise MetricsUnavailableError(
            f"metrics require prometheus_client 0.20 or later (pip install 'pyforkfd[metrics]'): "
            f"{error}",
            name="prometheus_client",
        ) from error


def demand_client(config: Config) -> None:
    """Demand prometheus_client, where a service has metrics.

    Raises:
        MetricsUnavailableError: prometheus_client is missing or too old.
    """
    if config.address is not None or config.textfile is not None:
        for module in ("exposition", "registry", "metrics_core"):
            _client(module)


class Collector:
    """A custom collector of prometheus_client over :class:`Metrics`, without state of its own.

    Args:
        metrics: read at every scrape.
        clock: CLOCK_MONOTONIC in ns.

    Raises:
        MetricsUnavailableError: prometheus_client is missing or too old.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._metrics = metrics
        self._clock = clock
        self._core = _client("metrics_core")

    def collect(self) -> Iterator[Metric]:
        """Return each metric with its samples; called by a registry."""
        for family, samples in self._metrics.collect(self._clock()):
            yield self._family(family, samples)

    def _family(self, family: Family, samples: Samples) -> Metric:
        metric = _KINDS[family.kind](self._core, family)
        for labels, value in samples:
            if isinstance(value, Histogram):
                below = zip(_BOUNDS, accumulate(value.counts), strict=True)
                metric.add_metric(labels, list(below), value.sum)
            else:
                metric.add_metric(labels, value)
        return metric


_KINDS = {
    "counter": lambda core, f: core.CounterMetricFamily(f.name, f.help, labels=f.labels),
    "gauge": lambda core, f: core.GaugeMetricFamily(f.name, f.help, labels=f.labels),
    "histogram": lambda core, f: core.HistogramMetricFamily(f.name, f.help, labels=f.labels),
}


class Exposition:
    """A renderer of the metrics, with a registry of its own for further collectors.

    Args:
        metrics: the values to show.

    Raises:
        MetricsUnavailableError: prometheus_client is missing or too old.

    Attributes:
        registry: for more collectors, such as prometheus_client's own of the process.
    """

    def __init__(self, metrics: Metrics) -> None:
        exposition, registry = _client("exposition"), _client("registry")
        self._choose = exposition.choose_encoder
        self.registry: CollectorRegistry = registry.CollectorRegistry(auto_describe=False)
        self.registry.register(Collector(metrics))

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """Render all metrics with their values now.

        Args:
            accept: the header Accept of a request: OpenMetrics where it names that, else text.

        Returns:
            The content type, and the text.
        """
        # Nothing else of the header is passed on: some values make the client library fail.
        accepted = f"{_OPENMETRICS}; version=1.0.0" if _OPENMETRICS in accept else ""
        encode, content_type = self._choose(accepted)
        return content_type, encode(self.registry)


def write_textfile(path: StrPath, data: bytes) -> None:
    """Replace a file at once, as node_exporter's textfile collector requires it.

    Readers see the old text or the new, never a part: the text is written beside the file,
    under a name that the collector does not take (``.NAME.PID``), and renamed (rename(2)).
    Writing to a file system may be slow: put the file on a tmpfs.

    Args:
        path: its directory must exist; the name should end in ``.prom``.
        data: the whole text; readable for all (0o644, whatever the umask).

    Raises:
        OSError: open(2), write(2) or rename(2) failed; the old file stays, and no other.
        UntrustedPathError: another user decides where the path leads.
    """
    above, name = split(os.fsdecode(path))
    beside = f".{name}.{os.getpid()}"
    with walk(above) as directory:
        directory.unlink(beside)
        # Made by us: what another user puts in its place is neither followed nor written to.
        fd = directory.open_file(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(fd, "wb", buffering=0) as file:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                os.fchmod(fd, 0o644)
            directory.rename(beside, name)
        except BaseException:
            directory.unlink(beside)
            raise
