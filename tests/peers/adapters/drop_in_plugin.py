"""Our engine under the standard modules of a pytest run: python -m pytest -p drop_in_plugin."""

import os
from pathlib import Path

import pyforkfd.subprocess
from pyforkfd import _core

pyforkfd.subprocess.install()
before = _core.counters()["spawned"]


def pytest_sessionfinish() -> None:
    Path(os.environ["DROP_IN_CALLS"]).write_text(str(_core.counters()["spawned"] - before))
