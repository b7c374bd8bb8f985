"""The command line as ``python -m pyforkfd``: see :mod:`pyforkfd.cli`."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
