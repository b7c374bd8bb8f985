"""The public names, and what they cost."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import pyforkfd.supervisor as public

NAMES = """
Component Control ForkfdHandler Heartbeat Limits Listener Log Loki MemoryGuard Metrics Origin
Pressure Privileges Problem RecordWriter Recycle Restart Service SpecError StructlogProcessor
Supervisor ZygoteSpec load loads log_uncaught log_writer obey validate
""".split()


def test_the_names_are_those_that_are_promised() -> None:
    assert sorted(NAMES) == sorted(public.__all__)
    assert set(NAMES) <= set(dir(public))


@pytest.mark.parametrize("name", NAMES)
def test_each_is_there_and_described(name: str) -> None:
    found = getattr(public, name)
    assert found.__name__ == name
    assert inspect.getdoc(found)
    assert found.__module__.startswith("pyforkfd.supervisor.")


def test_there_is_nothing_else() -> None:
    with pytest.raises(AttributeError, match=r"'pyforkfd\.supervisor' has no attribute 'Worker'"):
        _ = public.Worker  # type: ignore[attr-defined]


def imported_by(code: str) -> set[str]:
    shown = "; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code + shown], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_who_imports_us_pays_for_no_supervisor() -> None:
    front = imported_by("import pyforkfd")
    assert not {name for name in front if "supervisor" in name}
    package = imported_by("import pyforkfd.supervisor") - front
    assert package == {"pyforkfd.supervisor"}
    described = imported_by("from pyforkfd.supervisor import Service") - front
    modules = ("_bounds", "_limits", "_problems", "_reader", "_spec", "_units")
    package |= {"pyforkfd.supervisor.spec"}
    package |= {f"pyforkfd.supervisor.spec.{name}" for name in modules}
    assert described == package
    running = imported_by("from pyforkfd.supervisor import Supervisor") - front
    assert not {name for name in running if name.startswith("rich")}
