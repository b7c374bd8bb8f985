"""Other programs and kernel features that tests need."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable

import pytest

NATIVE_TOOLS = ".ci/install-native-tools"


def tool(name: str, package: str, installer: str = ".ci/install-servers") -> str:
    """Return the path of a program, or skip; in CI, which runs the installer, fail instead."""
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
