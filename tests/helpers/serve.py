"""Supervises the service of a TOML file until it is told to stop: serve.py FILE."""

from __future__ import annotations

import logging
import sys

from pyforkfd.supervisor._loop import Supervisor
from pyforkfd.supervisor._succession import inherited_service
from pyforkfd.supervisor._toml import load

logging.basicConfig(level=logging.INFO, format="%(process)d %(message)s")
path = sys.argv[1]
sys.exit(Supervisor(inherited_service() or load(path), read_again=lambda: load(path)).run())
