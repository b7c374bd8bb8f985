"""Taking the cgroup that we were given, as a supervisor does: in children, which move."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from cgroups import AS_NOBODY, answer, line, mount, reap_orphan, running, sleeper
from children import needs_root

import pyforkfd as ff
from pyforkfd.supervisor.cgroups._delegation import _below, own_cgroup
from pyforkfd.supervisor.cgroups._tree import open_tree
from pyforkfd.supervisor.spec._limits import Limits

# What a supervisor does at its start, once for each policy; the limits are an argument too.
SUPERVISOR = """
import json, sys
from pyforkfd import run
from pyforkfd.supervisor.cgroups._tree import open_tree
from pyforkfd.supervisor.cgroups._file import CgroupError
from pyforkfd.supervisor.spec._limits import Limits
limits = Limits(**json.loads(sys.argv[2]))

def start(policy):
    try:
        tree, missing = open_tree(policy, [limits], also=map(int, sys.argv[3:]))
    except CgroupError as error:
        return {"error": str(error), "notes": getattr(error, "__notes__", [])}
    own = open("/proc/self/cgroup").read().splitlines()[-1]
    said = {"missing": missing, "tree": tree and str(tree.path), "own": own}
    if tree:
        said["controllers"] = sorted(tree.controllers)
        with tree, tree.leaf("web.1", limits) as leaf:
            show = ["cat", "/proc/self/cgroup"]
            said["worker"] = run(show, cgroup=leaf, capture=True, text=True).stdout.strip()
            said["set"] = {name: (leaf.path / name).read_text().strip()
                           for name in limits.files() if (leaf.path / name).exists()}
            while not leaf.remove(): pass
    return said

print(json.dumps([start(policy) for policy in sys.argv[1].split()]), flush=True)
"""
MEMORY_AND_PIDS = '{"memory_max": 1073741824, "pids_max": 50}'


def supervise(policies: str, limits: str, *also: str, before: str = "", **options: Any) -> Any:
    """What a supervisor that is started once with each policy says; of one policy, its words."""
    said = answer(before + SUPERVISOR, policies, limits, *also, **options)
    return said if " " in policies else said[0]


def test_the_supervisor_leaves_an_inner_node(given: Path) -> None:
    said = supervise("require", MEMORY_AND_PIDS, cgroup=given)
    assert said["missing"] == []
    assert said["tree"] == str(given)
    assert said["own"].endswith(f"/{given.name}/supervisor")
    assert set(said["controllers"]) == {"memory", "pids"}
    assert said["worker"].endswith(f"{given.name}/web.1")
    assert said["set"] == {"memory.max": "1073741824", "pids.max": "50"}
    assert (given / "cgroup.procs").read_text() == ""


def test_started_again_it_finds_its_place(given: Path) -> None:
    supervise("require", MEMORY_AND_PIDS, cgroup=given)
    # As after an upgrade, or by DelegateSubgroup=supervisor.
    said = supervise("require", MEMORY_AND_PIDS, cgroup=given / "supervisor")
    assert said["tree"] == str(given)
    assert said["own"].endswith(f"/{given.name}/supervisor")


def test_all_of_ours_move(given: Path) -> None:
    """A child, since it descends from us; and a keeper, since we name it."""
    with sleeper(cgroup=given) as keeper:
        before = "import subprocess; child = subprocess.Popen(['sleep', '1000'])\n"
        said = supervise(
            "require",
            MEMORY_AND_PIDS,
            str(keeper.pid),
            before=before + "import atexit; atexit.register(child.kill)\n",
            cgroup=given,
        )
        assert said.get("missing") == []
        assert (given / "supervisor" / "cgroup.procs").read_text().split() == [str(keeper.pid)]


def test_strangers_are_named_and_stay(given: Path) -> None:
    with sleeper(cgroup=given) as stranger:
        said, preferred = supervise("require prefer", MEMORY_AND_PIDS, cgroup=given)
        assert said["error"].startswith(
            f"cannot have the memory controller: write '+memory' to "
            f"{given}/cgroup.subtree_control: Device or resource busy; other processes are in "
            f"{given}: sleep ({stranger.pid}); start us in one of our own: "
        )
        assert "Delegate=yes" in said["error"]
        (note,) = said["notes"]
        assert note.startswith("cannot have the pids controller: ")
        assert (given / "cgroup.procs").read_text().split() == [str(stranger.pid)]
        assert len(preferred["missing"]) == 2
        assert preferred["set"] == {}
        assert preferred["worker"].endswith(f"{given.name}/web.1"), (
            "killing as a whole is still had"
        )


def test_all_move_where_the_service_manager_says_that_it_is_ours(given: Path) -> None:
    os.setxattr(given, "user.delegate", b"1")
    with sleeper(cgroup=given) as control:
        assert supervise("require", MEMORY_AND_PIDS, cgroup=given)["missing"] == []
        assert (given / "supervisor" / "cgroup.procs").read_text().split() == [str(control.pid)]


# Mounts of its own, which nobody else sees.
REMOUNTED = """
import subprocess, sys
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run("COMMAND".split(), check=True)
"""
FIRST_OF_A_CONTAINER = (
    REMOUNTED
    + """
import os
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
)


@needs_root
def test_all_move_in_a_container(given: Path) -> None:
    """Its first process, which starts the supervisor, is not the supervisor's own."""
    before = FIRST_OF_A_CONTAINER.replace("COMMAND", "mount -t proc proc /proc")
    options: dict[str, Any] = {"before": before, "cgroup": given, "namespaces": ["pid", "mnt"]}
    with sleeper(cgroup=given):
        said = supervise("require", MEMORY_AND_PIDS, **options)
        assert f"other processes are in {given}: of another pid namespace (0); " in said["error"]
    said = supervise("require", MEMORY_AND_PIDS, **options)
    assert said.get("missing") == [], said
    assert (given / "cgroup.procs").read_text() == ""


def test_a_controller_that_the_parent_keeps(given: Path) -> None:
    (given / "cgroup.subtree_control").write_text("+pids")
    poor = given / "poor"
    poor.mkdir()
    said, preferred = supervise("require prefer", MEMORY_AND_PIDS, cgroup=poor)
    assert said["error"].startswith(
        f"cannot have the memory controller: write '+memory' to {poor}/cgroup.subtree_control: "
        "No such file or directory; its parent does not hand it on (systemd: Delegate=yes"
    )
    (text,) = preferred["missing"]
    assert text == said["error"]
    assert preferred["set"] == {"pids.max": "50"}


def test_a_limit_that_is_preferred_and_refused(given: Path) -> None:
    limits = Limits(pids_max=2**40)
    tree, missing = open_tree("prefer", [limits], start=given)
    assert tree is not None and missing == ()
    with tree, tree.leaf("web.1", limits) as leaf:
        (text,) = leaf.missing
        assert text.startswith(f"write '1099511627776' to {leaf.path}/pids.max: ")


def test_off_means_off(home: Path) -> None:
    said = supervise("off", MEMORY_AND_PIDS, cgroup=home)
    assert (said["tree"], said["missing"]) == (None, [])
    assert said["own"].endswith(f"/{home.name}")
    assert not (home / "supervisor").exists()


@needs_root
def test_a_user_to_whom_it_was_delegated(given: Path) -> None:
    for name in (".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        os.chown(given / name, 65534, 65534)
    said = supervise("require", MEMORY_AND_PIDS, cgroup=given, **AS_NOBODY)
    assert said.get("missing") == [], said
    assert said["set"] == {"memory.max": "1073741824", "pids.max": "50"}


@needs_root
def test_a_user_to_whom_half_of_it_was(home: Path) -> None:
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        os.chown(home / name, 65534, 65534)
    said = supervise("require", "{}", cgroup=home, **AS_NOBODY)
    assert said["error"].startswith(
        f"the cgroup is not delegated to us: cannot write {home}: Permission denied; "
    )


@needs_root
def test_a_user_to_whom_it_was_not(home: Path) -> None:
    said, preferred = supervise("require prefer", MEMORY_AND_PIDS, cgroup=home, **AS_NOBODY)
    told = (
        f"the cgroup is not delegated to us: cannot write {home}/cgroup.procs: Permission denied; "
        "let the service manager delegate it (systemd: Delegate=yes in the unit, or "
        "systemd-run --property=Delegate=yes)"
    )
    assert said["error"] == told
    assert (preferred["tree"], preferred["missing"]) == (None, [f"no cgroups: {told}"])
    assert not (home / "supervisor").exists()


READ_ONLY = (
    "the cgroup is not delegated to us: cannot write {home}/cgroup.procs: Read-only file system; "
    "the tree is mounted read-only, as containers have it: "
)


@needs_root
@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("mount -o remount,bind,ro {mount}", READ_ONLY),
        ("umount -l {mount}", "find a cgroup v2 tree in /proc/self/mountinfo: No such file or "),
    ],
    ids=["read-only", "not mounted"],
)
def test_a_tree_that_is_not_there_for_us(home: Path, command: str, told: str) -> None:
    words = {"mount": str(mount()), "home": str(home)}
    remounted = REMOUNTED.replace("COMMAND", command.format_map(words))
    said, preferred = supervise(
        "require prefer", "{}", before=remounted, cgroup=home, namespaces=["mnt"]
    )
    assert said["error"].startswith(told.format_map(words))
    assert preferred["tree"] is None
    assert preferred["missing"] == ["no cgroups: " + said["error"]]


def test_two_supervisors_do_not_divide_one_cgroup(home: Path) -> None:
    tree, _ = open_tree("prefer", start=home)
    assert tree is not None
    with tree:
        said = supervise("require", "{}", cgroup=home)
        assert said["error"] == (
            f"lock against other supervisors the cgroup {home}: Resource temporarily unavailable; "
            "another one divides it; start us in a cgroup of our own"
        )
    assert supervise("require", "{}", cgroup=home)["tree"] == str(home)


KILLED = """
import json, os, sys
import pyforkfd as ff
from pyforkfd.supervisor.cgroups._tree import open_tree
tree, _ = open_tree("prefer")
leaf = tree.leaf("web.1")
worker = ff.spawn(["sleep", "1000"], cgroup=leaf)
print(worker.pid, flush=True)
worker.wait()
"""


def test_leafs_of_a_killed_supervisor_are_found_and_adopted(home: Path) -> None:
    command: list[ff.StrPath] = [sys.executable, "-I", "-c", KILLED]
    with running(command, cgroup=home, fds={1: ff.PIPE}) as supervisor:
        worker = int(line(supervisor))
        supervisor.kill()
        assert supervisor.wait(timeout=10).signal == signal.SIGKILL
    tree, _ = open_tree("prefer", start=home)
    assert tree is not None
    with tree:
        assert tree.leftovers() == ["web.1"]
        with tree.adopt("web.1") as leaf:
            assert leaf.procs() == [worker]
            leaf.kill()
    reap_orphan(worker)


def test_our_own_cgroup(home: Path) -> None:
    code = "import json; from pyforkfd.supervisor.cgroups._delegation import own_cgroup\n"
    code += "print(json.dumps(str(own_cgroup())))"
    assert answer(code, cgroup=home) == str(home)
    with sleeper(cgroup=home) as child:
        assert own_cgroup(child.pid) == home


@pytest.mark.parametrize(
    ("root", "path", "below"),
    [
        ("/", "/", ""),
        ("/", "/a/b", "a/b"),
        ("/docker/1", "/docker/1", ""),
        ("/docker/1", "/docker/1/x", "x"),
        ("/docker/1", "/docker/12", None),
        ("/", "/../other", None),
        ("/", "/a (deleted)", None),
    ],
)
def test_where_a_mount_shows_a_cgroup(root: str, path: str, below: str | None) -> None:
    assert _below(root, path) == below
