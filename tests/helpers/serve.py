"""Supervise the service of a TOML file until SIGTERM: serve.py FILE."""

from __future__ import annotations

import logging
import sys

from pyforkfd.supervisor._supervisor import Supervisor
from pyforkfd.supervisor.spec._toml import load
from pyforkfd.supervisor.succession._succession import inherited_service

logging.basicConfig(level=logging.INFO, format="%(process)d %(message)s")
path = sys.argv[1]
sys.exit(Supervisor(inherited_service() or load(path), read_again=lambda: load(path)).run())
