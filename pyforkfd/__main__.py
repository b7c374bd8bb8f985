"""The command line as ``python -m pyforkfd``: see :mod:`pyforkfd.cli`."""

from __future__ import annotations

import os
import sys


def _forget_current_directory() -> None:
    """Remove the current directory from the path, on which -m has put it first.

    The installed command does not import from there either, and whoever may write to it must
    not run modules as us.
    """
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    if not sys.flags.safe_path and os.path.realpath(sys.path[0]) != root:
        del sys.path[0]


if __name__ == "__main__":
    _forget_current_directory()
    from .cli import main

    sys.exit(main())
