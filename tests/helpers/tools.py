"""Programs of others that tests want."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable

import pytest

NATIVE_TOOLS = ".ci/install-native-tools"


def tool(name: str, package: str, installer: str = ".ci/install-servers") -> str:
    """Its path; in CI, which has run the installer, it must be there."""
    if path := shutil.which(name):
        return path
    if os.environ.get("CI"):
        pytest.fail(f"{name} is missing: {installer} installs it")
    pytest.skip(f"no {name} (Debian's {package})")


def required(feature: str, use: Callable[[], object]) -> None:
    """Use a feature of the kernel, or skip and name it."""
    try:
        use()
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.ENOSYS, errno.EINVAL):
            raise
        pytest.skip(f"this kernel has no {feature}: {error}")
