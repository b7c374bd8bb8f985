"""The tests that need cgroup controllers, in a machine that has them, each by its name.

They run a second time on the host where that has them too, and are skipped there otherwise.
"""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest
from cgroups import CONTROLLERS, mount
from vm import Run, run_pytest

HERE = Path(__file__).parent
FILES = [
    HERE / f"test_{name}.py" for name in ("delegation", "leaf", "leaf_limits", "limited_service")
]


def names() -> list[str]:
    return [
        f"{file.stem}::{statement.name}"
        for file in FILES
        for statement in ast.parse(file.read_text()).body
        if isinstance(statement, ast.FunctionDef) and statement.name.startswith("test_")
    ]


@pytest.fixture(scope="module")
def machine() -> Run:
    if shutil.which("linux.uml") is None and set(CONTROLLERS) <= controllers():
        pytest.skip(
            "no linux.uml (Debian's user-mode-linux); this machine's own cgroup v2 tree has the "
            "controllers, so root runs these tests on it"
        )
    return run_pytest(FILES)


def controllers() -> set[str]:
    return set((mount() / "cgroup.controllers").read_text().split())


@pytest.mark.parametrize("name", names())
def test_in_a_machine(name: str, machine: Run) -> None:
    outcomes = machine.outcomes.get(name)
    assert outcomes, f"not run:\n{machine.log}"
    for outcome in outcomes:
        if outcome.kind != "passed":  # skipped too: the machine has all that the tests need
            pytest.fail(f"{outcome.case}: {outcome.kind}\n{outcome.text}", pytrace=False)
