"""The process in which ``serve --check`` imports what workers are to call.

The code of a service runs here and nowhere else: it may print, fail, end the process or never
return.  Each step is reported before it begins, so that its end is its own.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence

from pyforkfd._entry_points import resolve
from pyforkfd.zygote._errors import in_a_line


def main(targets: Sequence[str], reports: int) -> None:
    """Import modules and functions, report which fail, and end the process.

    Args:
        targets: ``"package.module"`` or ``"package.module:function"``.
        reports: descriptor for lines of JSON: ``[index, null]`` before each target, ``[index,
            error]`` if it has failed, ``[null, null]`` at the end.
    """
    os.set_inheritable(reports, False)
    for index, target in enumerate(targets):
        _report(reports, index, None)
        try:
            if ":" in target:
                resolve(target)
            else:
                importlib.import_module(target)
        except BaseException as error:  # SystemExit too
            _report(reports, index, in_a_line(error))
    _report(reports, None, None)
    os._exit(0)  # what was imported is not to end in its own way


def _report(fd: int, index: int | None, error: str | None) -> None:
    os.write(fd, json.dumps([index, error]).encode() + b"\n")
