"""A supervisor in a process of its own: run_service.py CONFIG; logs messages of workers."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from pyforkfd.supervisor._supervisor import Supervisor
from pyforkfd.supervisor.spec._toml import load


def main(config: str) -> int:
    log = logging.getLogger("pyforkfd.service")  # below the supervisor's logger

    def on_message(component: str, worker: int, data: Any) -> None:
        log.info("message %s", json.dumps([component, worker, data]))
        if isinstance(data, dict) and "forward" in data:
            supervisor.send(data["forward"], data)
        if data == "roll back":
            supervisor.roll_back()

    supervisor = Supervisor(load(config), read_again=lambda: load(config), on_message=on_message)
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
