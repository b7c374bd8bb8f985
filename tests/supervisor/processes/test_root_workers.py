"""Workers that are root without capabilities: reported at their start and at their death."""

from __future__ import annotations

import json
import os
import pwd
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from children import needs_root
from supervised import Supervised

from pyforkfd.supervisor.spec._privileges import CAPABILITIES, Holder, environment
from pyforkfd.supervisor.spec._root_workers import powerless_root
from pyforkfd.supervisor.spec._spec import Component, Privileges

ALL = frozenset(CAPABILITIES.values())
ROOT = Holder(permitted=ALL, effective=ALL, user=0, group=0, groups=frozenset())
REMEDY = (
    'write privileges.capabilities = ["CHOWN", "DAC_OVERRIDE", "KILL", "SETGID", "SETUID", '
    '"NET_BIND_SERVICE"], or privileges.user = "..."'
)


def component(privileges: Mapping[str, Any] = {}, listen: tuple[str, ...] = ()) -> Component:
    made = Privileges(**privileges)
    return Component(name="web", command=("/bin/true",), listen=listen, privileges=made)


@pytest.mark.parametrize(
    ("privileges", "powerless"),
    [
        ({}, True),
        ({"user": "root"}, True),
        ({"user": 0, "group": 0}, True),
        ({"capabilities": ()}, True),
        ({"capabilities": ("SETUID", "SETGID")}, True),
        ({"capabilities": ("CHOWN", "SETUID", "CAP_SETGID")}, False),
        ({"user": "nobody"}, False),
        ({"user": 12345, "group": 12345}, False),
        ({"namespaces": ("user",)}, False),
        ({"user": "no-such-user"}, False),  # the spawn fails
    ],
)
def test_who_is_powerless(privileges: dict[str, Any], powerless: bool) -> None:
    assert powerless_root(component(privileges), ROOT) == (REMEDY if powerless else None)
    assert (powerless_root(component(privileges, ("http",)), ROOT) is not None) == powerless


def test_another_user_is_not_root() -> None:
    holder = Holder(permitted=ALL, effective=ALL, user=33, group=33, groups=frozenset())
    assert powerless_root(component(), holder) is None


def test_a_remedy_names_what_the_supervisor_can_give() -> None:
    """A container's root has fewer; or none at all, and then there is no remedy."""
    some = frozenset({CAPABILITIES["SETUID"], CAPABILITIES["NET_RAW"]})
    holder = Holder(permitted=some, effective=some, user=0, group=0, groups=frozenset())
    remedy = powerless_root(component(), holder)
    assert remedy == 'write privileges.capabilities = ["SETUID"], or privileges.user = "..."'
    none = Holder(permitted=frozenset(), effective=frozenset(), user=0, group=0, groups=frozenset())
    assert powerless_root(component(), none) is None


FAILS = """
import os, sys
sys.stderr.write(("x" * 9 + "\\n") * int(sys.argv[1]))  # more than is read in one turn
os.setuid(65534)
"""


def service(folder: Path, *command: str, more: str = "") -> Supervised:
    return Supervised(
        folder,
        f"[components.web]\ncommand = {json.dumps(command)}\nworkers = 2\n"
        f'readiness = "started"\nrestart = {{ max_restarts = 20 }}\n{more}\n',
    )


@needs_root
def test_a_start_is_reported_once_for_each_generation(tmp_path: Path) -> None:
    with service(tmp_path, "sleep", "1000") as running:
        running.log.wait_for("web: runs as root without capabilities: .*EPERM.*" + "SETUID")
        running.until("^ready")
        os.kill(running.workers()[0]["pid"], 9)
        running.log.wait_for("worker 3: ready")
        assert running.log.text().count("runs as root") == 1
        assert running.command("reload").returncode == 0
        assert running.log.text().count("runs as root") == 2


@needs_root
@pytest.mark.parametrize(("stream", "lines"), [("capture", 0), ("capture", 6000), ("inherit", 0)])
def test_a_death_of_eperm_names_the_remedy(tmp_path: Path, stream: str, lines: int) -> None:
    fails = (sys.executable, "-c", FAILS, str(lines))
    with service(tmp_path, *fails, more=f'stderr = "{stream}"') as running:
        running.log.wait_for(
            r"worker \d+ died \(exit\): exit code 1 \(EPERM is likely: it ran as root without "
            r'capabilities; write privileges\.capabilities = \["CHOWN".*before it was ready'
        )


@needs_root
def test_another_death_does_not(tmp_path: Path) -> None:
    with service(tmp_path, "sh", "-c", "exit 3") as running:
        running.log.wait_for(r"worker \d+ died \(exit\): exit code 3 before it was ready$")


@needs_root
@pytest.mark.parametrize(
    "more",
    [
        'privileges = { capabilities = ["CHOWN", "SETUID", "SETGID"] }',
        'privileges = { user = "nobody" }',
    ],
)
def test_who_has_decided_is_not_bothered(tmp_path: Path, more: str) -> None:
    tmp_path.chmod(0o755)
    fails = "echo Operation not permitted >&2; exit 1"
    with service(tmp_path, "sh", "-c", fails, more=more) as running:
        running.log.wait_for(r"died \(exit\): exit code 1 before it was ready$")
        assert "as root" not in running.log.text()


@needs_root
@pytest.mark.parametrize("given", ["SETUID,SETGID,CHOWN", "cap_setuid SETGID,CHOWN"])
def test_capabilities_on_the_command_line(tmp_path: Path, given: str) -> None:
    code = "import os; os.setgid(65534); os.setuid(65534); print('now', os.getuid())"
    words = ["--readiness", "started", "--capabilities", given, "--", sys.executable, "-u", "-c"]
    with Supervised(tmp_path, arguments=[*words, code]) as running:
        running.log.wait_for("now 65534")
        assert "as root" not in running.log.text()


def test_none_on_the_command_line(tmp_path: Path) -> None:
    words = ["--listen", "tcp://127.0.0.1:0", "--readiness", "started", "--capabilities", "none"]
    show = ["--", "sh", "-c", "grep CapEff /proc/self/status; exec sleep 1000"]
    with Supervised(tmp_path, arguments=[*words, *show]) as running:
        running.log.wait_for("CapEff:\t0000000000000000")


def test_a_capability_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with Supervised(tmp_path, arguments=["--capabilities", "FLY", "--", "true"]) as running:
        assert running.wait() == 2
        assert 'there is no capability "FLY"' in running.log.text()


# --- the variables of a user -----------------------------------------------------------------

OURS = {"HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash", "PATH": "/bin"}


def variables(**changes: Any) -> dict[str, str]:
    made = Component(name="web", command=("/bin/true",), **changes)
    return environment(made, OURS)


def entry(home: str, shell: str) -> pwd.struct_passwd:
    return pwd.struct_passwd(("anna", "x", 4321, 4321, "Anna", home, shell))


def test_without_a_user_all_is_as_it_was() -> None:
    assert variables() == OURS
    assert variables(privileges=Privileges(group=0)) == OURS


def test_a_user_brings_its_variables() -> None:
    daemon = pwd.getpwnam("daemon")
    wanted = {"PATH": "/bin", "HOME": daemon.pw_dir, "USER": "daemon", "LOGNAME": "daemon"}
    for user in "daemon", daemon.pw_uid:
        found = variables(privileges=Privileges(user=user))
        assert found.pop("SHELL", None) in (None, daemon.pw_shell)
        assert found == wanted
    found = variables(privileges=Privileges(user="daemon"), clear_env=True)
    assert found.keys() - {"SHELL"} == wanted.keys() - {"PATH"}


@pytest.mark.parametrize(
    ("home", "shell", "wanted"),
    [
        ("/home/anna", "/bin/zsh", {"HOME": "/home/anna", "SHELL": "/bin/zsh"}),
        ("/nonexistent", "/usr/sbin/nologin", {"HOME": "/nonexistent"}),
        ("/", "/bin/false", {}),  # systemd sets none either
        ("", "", {}),
    ],
)
def test_what_stands_for_none_is_not_set(
    home: str, shell: str, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pwd, "getpwnam", lambda name: entry(home, shell))
    anna = {"PATH": "/bin", "USER": "anna", "LOGNAME": "anna"}
    assert variables(privileges=Privileges(user="anna")) == anna | wanted


def test_env_goes_before_them() -> None:
    env = {"HOME": "/srv", "SHELL": "/bin/sh"}
    found = variables(privileges=Privileges(user="daemon"), env=env)
    assert (found["HOME"], found["SHELL"], found["USER"]) == ("/srv", "/bin/sh", "daemon")


def test_a_user_without_an_entry_has_none_of_them() -> None:
    assert variables(privileges=Privileges(user=54321, group=54321)) == {"PATH": "/bin"}
    assert variables(privileges=Privileges(user="no-such-user")) == {"PATH": "/bin"}


@needs_root
def test_a_worker_of_a_user_has_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    command = '["sh", "-c", "echo $HOME $USER $LOGNAME; exec sleep 1000"]'
    config = f"""
[components.web]
command = {command}
readiness = "started"
privileges = {{ user = "nobody" }}
"""
    with Supervised(tmp_path, config) as running:
        running.log.wait_for("/nonexistent nobody nobody")
