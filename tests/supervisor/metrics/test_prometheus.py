"""The metrics as Prometheus reads them, by its own parsers."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT
from prometheus_client import openmetrics, parser
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.openmetrics import parser as openmetrics_parser

import pyforkfd as ff
from pyforkfd.supervisor.metrics._counters import Metrics
from pyforkfd.supervisor.metrics._families import FAMILIES
from pyforkfd.supervisor.metrics._prometheus import Exposition, write_textfile

PAGE = ROOT / "docs/supervisor-metrics.md"
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    with ff.SharedPage.create(4) as page:
        metrics = Metrics(memory=lambda worker: 4096 * worker)
        metrics.component('we"b\\\n', wanted=3)
        for worker in (1, 2):
            slot = page.slot(worker)
            metrics.started(component='we"b\\\n', worker_id=worker, generation=1, slot=slot)
            slot.beat()
            slot.add(10 * worker)
            metrics.ready(worker, boot_seconds=0.02)
        metrics.ended(1, cause="oom", expected=False)
        metrics.reloaded("done")
        yield metrics


def families(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    return {
        sample.name: {}
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    } | {
        name: {
            tuple(sorted(sample.labels.items())): sample.value
            for family in parser.text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }
        for name in {
            sample.name
            for family in parser.text_string_to_metric_families(text)
            for sample in family.samples
        }
    }


def test_prometheus_reads_every_family(metrics: Metrics) -> None:
    content_type, data = Exposition(metrics).render()
    assert content_type.startswith("text/plain; version=0.0.4")
    read = families(data.decode())
    web = ("component", 'we"b\\\n')
    assert read["forkfd_requests_total"] == {(web,): 30}
    assert read["process_crash_total"][(("cause", "oom"), web)] == 1
    assert read["forkfd_worker_requests_total"] == {(web, ("worker", "2")): 20}
    assert read["forkfd_reloads_total"] == {(("outcome", "done"),): 1}
    buckets = read["forkfd_boot_seconds_bucket"]
    assert [buckets[web, ("le", le)] for le in ("0.01", "0.025", "60.0", "+Inf")] == [0, 2, 2, 2]
    assert read["forkfd_boot_seconds_sum"] == {(web,): 0.04}
    kinds = {f.name: f.type for f in parser.text_string_to_metric_families(data.decode())}
    for family in FAMILIES.values():
        assert kinds[family.name.removesuffix("_total")] == family.kind


def test_openmetrics_is_sent_to_clients_that_accept_it(metrics: Metrics) -> None:
    content_type, data = Exposition(metrics).render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    read = list(openmetrics_parser.text_string_to_metric_families(data.decode()))
    assert {f.name for f in read} == {name.removesuffix("_total") for name in FAMILIES}
    assert openmetrics is not None and data.endswith(b"# EOF\n")


def test_other_collectors_may_be_added(metrics: Metrics) -> None:
    class Own:
        def collect(self) -> Iterator[GaugeMetricFamily]:
            yield GaugeMetricFamily("own", "One of ours.", value=3)

    exposition = Exposition(metrics)
    exposition.registry.register(Own())
    assert b"\nown 3.0\n" in exposition.render()[1]


@given(
    accept=st.text()
    | st.sampled_from(["application/openmetrics-text;version=", "text/plain;"]).flatmap(
        lambda known: st.text().map(lambda rest: known + rest)
    )
)
def test_whatever_is_accepted_something_is_rendered(accept: str) -> None:
    content_type, data = Exposition(Metrics()).render(accept)
    assert content_type.isprintable() and content_type.isascii()
    assert b"forkfd_generation" in data


def test_the_table_of_the_documents_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*) \|$", PAGE.read_text(), re.M)
    table = [(n, k, tuple(re.findall(r"`(\w+)`", labels)), text) for n, k, labels, text in rows]
    assert table == [(f.name, f.kind, f.labels, f.help) for f in FAMILIES.values()]


def test_without_prometheus_client_the_error_names_the_package() -> None:
    code = """
import sys
sys.modules["prometheus_client"] = None
from pyforkfd.supervisor.metrics._prometheus import Exposition, MetricsUnavailableError
from pyforkfd.supervisor.metrics._counters import Metrics
try:
    Exposition(Metrics())
except MetricsUnavailableError as error:
    print(error)
"""
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "pip install 'pyforkfd[metrics]'" in done.stdout


def test_a_textfile_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "forkfd.prom"
    texts = [b"a" * 100_000, b"b" * 100_000]
    write_textfile(path, texts[0])
    done = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set() or len(seen) < 1:
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    before = os.umask(0o077)
    try:
        reader.start()
        for turn in range(200):
            write_textfile(path, texts[turn % 2])
    finally:
        os.umask(before)
        done.set()
        reader.join()
    assert seen <= set(texts)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["forkfd.prom"]


def test_a_textfile_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_textfile(tmp_path / "none" / "forkfd.prom", b"")
    path = tmp_path / "forkfd.prom"
    path.mkdir()  # cannot be replaced by a file
    with pytest.raises(IsADirectoryError):
        write_textfile(path, b"new")
    assert os.listdir(tmp_path) == ["forkfd.prom"]


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"old")
    path = tmp_path / "forkfd.prom"
    (tmp_path / f".forkfd.prom.{os.getpid()}").symlink_to(victim)
    path.symlink_to(victim)
    write_textfile(os.fsencode(path), b"new")
    assert victim.read_bytes() == b"old"
    assert not path.is_symlink() and path.read_bytes() == b"new"
