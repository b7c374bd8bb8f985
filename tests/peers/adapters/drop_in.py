"""Our engine under the standard modules, for tests/peers/test_drop_in.py."""

import pyforkfd.subprocess
from pyforkfd import _core

pyforkfd.subprocess.install()
before = _core.counters()["spawned"]


def calls() -> int:
    return _core.counters()["spawned"] - before
