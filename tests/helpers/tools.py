"""Programs of others that tests want."""

from __future__ import annotations

import os
import shutil

import pytest


def tool(name: str, package: str) -> str:
    """Its path; in CI, which installs it (.ci/install-servers), it must be there."""
    if path := shutil.which(name):
        return path
    if os.environ.get("CI"):
        pytest.fail(f"{name} is missing: .ci/install-servers installs it")
    pytest.skip(f"no {name} (Debian's {package})")
