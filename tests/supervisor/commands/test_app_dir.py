"""The directory that functions, preloaded modules and hooks are imported from."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from children import needs_root
from services import PATIENCE
from supervised import Supervised

from pyforkfd.supervisor.spec._diff import diff
from pyforkfd.supervisor.spec._spec import SpecError
from pyforkfd.supervisor.spec._toml import load, loads

SHOP = """
import pathlib, time
def prepare(): pass
def serve(): print("serves", __file__, flush=True); time.sleep(1000)
def die(): raise SystemExit(3)
def note(crash): (pathlib.Path(__file__).parent / "noted").write_text(crash["cause"])
"""
TEXT = """
name = "s"
{app_dir}
[components.web]
function = "shop:{function}"
zygote = "python"
readiness = "started"
cgroup = "off"
on_crash = ["shop:note"]
[zygotes.python]
preload = ["shop"]
setup = "shop:prepare"
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A directory beside that of the configuration, with the module."""
    found = tmp_path / "modules"
    found.mkdir(mode=0o755)
    (found / "shop.py").write_text(SHOP)
    return found


@pytest.fixture
def open_directory(tmp_path: Path) -> Iterator[Path]:
    """A directory of nobody's, who may write to it."""
    found = tmp_path / "open"
    found.mkdir()
    (found / "shop.py").write_text(SHOP)
    os.chown(found, 65534, 65534)
    yield found
    shutil.rmtree(found)


def text(app_dir: str | None = None, function: str = "serve") -> str:
    key = "" if app_dir is None else f'app_dir = "{app_dir}"'
    return TEXT.format(app_dir=key, function=function)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def check(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "pyforkfd", "serve", "--check", str(config)],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_default_is_the_directory_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    with Supervised(tmp_path, text()) as service:
        service.until("^ready")
        service.log.wait_for(f"serves {tmp_path}/shop.py")
        # A reload reads the file's new value, and a path of it begins at the file.
        (tmp_path / "next").mkdir()
        (tmp_path / "next/shop.py").write_text(SHOP)
        service.config.write_text(text("next"))
        done = service.command("reload")
        assert done.returncode == 0, done.stderr
        service.log.wait_for(f"serves {tmp_path}/next/shop.py")


def test_a_relative_one_begins_at_the_file_in_serve_and_check(
    tmp_path: Path, modules: Path
) -> None:
    with Supervised(tmp_path, text("modules")) as service:
        service.until("^ready")
    done = check(service.config)
    assert done.returncode == 0 and "no problem" in done.stdout, done.stderr
    service.config.write_text(text("nowhere"))
    done = check(service.config)
    assert done.returncode == 2 and "app_dir" in done.stderr, done.stderr
    assert str(tmp_path / "nowhere") in done.stderr


def test_hooks_are_imported_from_there(tmp_path: Path, modules: Path) -> None:
    with Supervised(tmp_path, text("modules", "die")) as service:
        service.log.wait_for(r"worker 1 died")
        until((modules / "noted").exists)
    assert (modules / "noted").read_text() == "exit"


def test_a_hot_upgrade_keeps_it(tmp_path: Path, modules: Path) -> None:
    with Supervised(tmp_path, text("modules")) as service:
        service.until("^ready")
        os.kill(service.process.pid, signal.SIGUSR2)
        service.log.wait_for("took over 1 worker")
        assert service.command("restart", "1").returncode == 0
        service.log.wait_for(f"serves {modules}/shop.py", count=2)


def test_the_command_line_has_the_current_directory(modules: Path) -> None:
    words = ["--function", "shop:serve", "--readiness", "started"]
    with Supervised(modules, arguments=words) as service:
        service.until("^ready")


OF_CWD = """
name = "s"
[components.web]
function = "shop:serve"
cwd = "{cwd}"
readiness = "started"
cgroup = "off"
restart = {{ max_restarts = 0, backoff = 0 }}
"""


def test_the_working_directory_is_importable_for_its_function(
    tmp_path: Path, modules: Path
) -> None:
    """In a zygote of its own; the directory of the file has no such module."""
    with Supervised(tmp_path, OF_CWD.format(cwd=modules)) as service:
        service.until("^ready")
        service.log.wait_for(f"serves {modules}/shop.py")
        assert check(service.config).returncode == 0
        (tmp_path / "next").mkdir()
        (tmp_path / "next/shop.py").write_text(SHOP)
        service.config.write_text(OF_CWD.format(cwd=tmp_path / "next"))
        done = service.command("reload")
        assert done.returncode == 0, done.stderr
        service.log.wait_for(f"serves {tmp_path}/next/shop.py")


def test_app_dir_comes_before_the_working_directory(tmp_path: Path, modules: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    with Supervised(tmp_path, OF_CWD.format(cwd=modules)) as service:
        service.log.wait_for(f"serves {tmp_path}/shop.py")


def test_a_zygote_imports_from_the_directories_of_all_its_components(tmp_path: Path) -> None:
    text = '[zygotes.python]\npreload = ["json"]\n'
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of_{name}.py").write_text(SHOP)
        text += (
            f'[components.{name}]\nfunction = "of_{name}:serve"\nzygote = "python"\n'
            f'cwd = "{tmp_path}/{name}"\nreadiness = "started"\ncgroup = "off"\n'
        )
    with Supervised(tmp_path, text) as service:
        service.until("^ready")
        for name in ("one", "two"):
            service.log.wait_for(f"serves {tmp_path}/{name}/of_{name}.py")
        assert check(service.config).returncode == 0


@needs_root
def test_root_imports_nothing_from_another_users_working_directory(
    tmp_path: Path, open_directory: Path, modules: Path
) -> None:
    """The component is served if its module is elsewhere; else the reason is said."""
    text = OF_CWD.format(cwd=open_directory)
    with Supervised(tmp_path, text) as service:
        service.log.wait_for(f"web: cwd: nothing is imported from it: {open_directory}: .*nobody's")
        service.log.wait_for("No module named 'shop'")
        assert service.wait() == 1
    done = check(service.config)
    assert done.returncode == 2
    assert "No module named 'shop'; web: cwd: nothing is imported from it" in done.stderr
    (tmp_path / "shop.py").write_text(SHOP)
    with Supervised(tmp_path, text) as service:
        service.until("^ready")
        service.log.wait_for(f"serves {tmp_path}/shop.py")


def test_a_new_directory_starts_functions_anew(modules: Path) -> None:
    old = loads(text(), "s.toml", directory=str(modules))
    new = loads(text(), "s.toml", directory="/usr")
    assert diff(old, new).components.changed == ("web",)
    assert not diff(old, old)


@needs_root
def test_root_imports_nothing_from_where_others_write(tmp_path: Path, open_directory: Path) -> None:
    config = tmp_path / "s.toml"
    config.write_text(text("open"))
    with pytest.raises(SpecError, match=rf"app_dir.*{open_directory}.*nobody.*set app_dir"):
        load(config)
    done = check(config)
    assert done.returncode == 2 and str(open_directory) in done.stderr, done.stderr
    # Without a function or a hook of Python nothing is imported from there.
    config.write_text('app_dir = "open"\n[components.web]\ncommand = ["true"]\n')
    assert load(config).app_dir == str(open_directory)
    config.write_text(
        'app_dir = "open"\n[components.web]\ncommand = ["true"]\non_crash = ["shop:note"]\n'
    )
    with pytest.raises(SpecError, match="app_dir"):
        load(config)
