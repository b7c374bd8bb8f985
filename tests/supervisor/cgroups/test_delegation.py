"""Dividing a delegated cgroup as a supervisor does, in children, which move."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from cgroups import AS_NOBODY, Refused, answer, line, mount, reap_orphan, running, sleeper
from children import needs_root

import pyforkfd as ff
from pyforkfd.supervisor.cgroups._delegation import _below, own_cgroup
from pyforkfd.supervisor.cgroups._tree import open_tree

# The start of a supervisor, once for each policy; the limits are an argument too.
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
    report = {"missing": missing, "tree": tree and str(tree.path), "own": own}
    if tree:
        report["controllers"] = sorted(tree.controllers)
        with tree, tree.leaf("web.1", limits) as leaf:
            show = ["cat", "/proc/self/cgroup"]
            report["worker"] = run(show, cgroup=leaf, capture=True, text=True).stdout.strip()
            report["set"] = {name: (leaf.path / name).read_text().strip()
                             for name in limits.files() if (leaf.path / name).exists()}
            while not leaf.remove(): pass
    return report

print(json.dumps([start(policy) for policy in sys.argv[1].split()]), flush=True)
"""
MEMORY_AND_PIDS = '{"memory_max": 1073741824, "pids_max": 50}'


def supervise(policies: str, limits: str, *also: str, before: str = "", **options: Any) -> Any:
    """Return the report of a supervisor for the policy, or its reports for several."""
    reports = answer(before + SUPERVISOR, policies, limits, *also, **options)
    return reports if " " in policies else reports[0]


def test_the_supervisor_leaves_an_inner_node(delegated: Path) -> None:
    report = supervise("require", MEMORY_AND_PIDS, cgroup=delegated)
    assert report["missing"] == []
    assert report["tree"] == str(delegated)
    assert report["own"].endswith(f"/{delegated.name}/supervisor")
    assert set(report["controllers"]) == {"memory", "pids"}
    assert report["worker"].endswith(f"{delegated.name}/web.1")
    assert report["set"] == {"memory.max": "1073741824", "pids.max": "50"}
    assert (delegated / "cgroup.procs").read_text() == ""


def test_started_again_it_finds_its_place(delegated: Path) -> None:
    supervise("require", MEMORY_AND_PIDS, cgroup=delegated)
    # As after an upgrade, or by DelegateSubgroup=supervisor.
    report = supervise("require", MEMORY_AND_PIDS, cgroup=delegated / "supervisor")
    assert report["tree"] == str(delegated)
    assert report["own"].endswith(f"/{delegated.name}/supervisor")


def test_all_of_our_processes_move(delegated: Path) -> None:
    """Move a child, since it is a descendant, and a keeper, since it is in ``also``."""
    with sleeper(cgroup=delegated) as keeper:
        before = "import subprocess; child = subprocess.Popen(['sleep', '1000'])\n"
        report = supervise(
            "require",
            MEMORY_AND_PIDS,
            str(keeper.pid),
            before=before + "import atexit; atexit.register(child.kill)\n",
            cgroup=delegated,
        )
        assert report.get("missing") == []
        assert (delegated / "supervisor" / "cgroup.procs").read_text().split() == [str(keeper.pid)]


def test_foreign_processes_are_named_and_stay(delegated: Path) -> None:
    with sleeper(cgroup=delegated) as foreign:
        report, preferred = supervise("require prefer", MEMORY_AND_PIDS, cgroup=delegated)
        assert report["error"].startswith(
            f"cannot have the memory controller: write '+memory' to "
            f"{delegated}/cgroup.subtree_control: Device or resource busy; other processes are in "
            f"{delegated}: sleep ({foreign.pid}); start us in one of our own: "
        )
        assert "Delegate=yes" in report["error"]
        (note,) = report["notes"]
        assert note.startswith("cannot have the pids controller: ")
        assert (delegated / "cgroup.procs").read_text().split() == [str(foreign.pid)]
        assert len(preferred["missing"]) == 2
        assert preferred["set"] == {}
        assert preferred["worker"].endswith(f"{delegated.name}/web.1"), (
            "the leaf can still be killed as a whole"
        )


def test_all_move_where_the_service_manager_has_marked_the_cgroup(delegated: Path) -> None:
    os.setxattr(delegated, "user.delegate", b"1")
    with sleeper(cgroup=delegated) as control:
        assert supervise("require", MEMORY_AND_PIDS, cgroup=delegated)["missing"] == []
        assert (delegated / "supervisor" / "cgroup.procs").read_text().split() == [str(control.pid)]


# Mounts in a namespace of its own.
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
def test_all_move_in_a_container(delegated: Path) -> None:
    """Move the container's first process too, which starts the supervisor."""
    before = FIRST_OF_A_CONTAINER.replace("COMMAND", "mount -t proc proc /proc")
    options: dict[str, Any] = {"before": before, "cgroup": delegated, "namespaces": ["pid", "mnt"]}
    with sleeper(cgroup=delegated):
        report = supervise("require", MEMORY_AND_PIDS, **options)
        assert (
            f"other processes are in {delegated}: of another pid namespace (0); " in report["error"]
        )
    report = supervise("require", MEMORY_AND_PIDS, **options)
    assert report.get("missing") == [], report
    assert (delegated / "cgroup.procs").read_text() == ""


def test_a_controller_that_the_parent_does_not_enable(delegated: Path) -> None:
    (delegated / "cgroup.subtree_control").write_text("+pids")
    poor = delegated / "poor"
    poor.mkdir()
    report, preferred = supervise("require prefer", MEMORY_AND_PIDS, cgroup=poor)
    assert report["error"].startswith(
        f"cannot have the memory controller: write '+memory' to {poor}/cgroup.subtree_control: "
        "No such file or directory; the parent cgroup does not enable the controller (systemd: "
    )
    (text,) = preferred["missing"]
    assert text == report["error"]
    assert preferred["set"] == {"pids.max": "50"}


def test_a_preferred_limit_that_is_refused(delegated: Path) -> None:
    limits = Refused()
    tree, missing = open_tree("prefer", [limits], start=delegated)
    assert tree is not None and missing == ()
    with tree, tree.leaf("web.1", limits) as leaf:
        (text,) = leaf.missing
        assert text.startswith(f"write '1099511627776' to {leaf.path}/pids.max: ")


def test_off_means_off(home: Path) -> None:
    report = supervise("off", MEMORY_AND_PIDS, cgroup=home)
    assert (report["tree"], report["missing"]) == (None, [])
    assert report["own"].endswith(f"/{home.name}")
    assert not (home / "supervisor").exists()


@needs_root
def test_a_user_to_whom_it_was_delegated(delegated: Path) -> None:
    for name in (".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        os.chown(delegated / name, 65534, 65534)
    report = supervise("require", MEMORY_AND_PIDS, cgroup=delegated, **AS_NOBODY)
    assert report.get("missing") == [], report
    assert report["set"] == {"memory.max": "1073741824", "pids.max": "50"}


@needs_root
def test_a_user_to_whom_half_of_it_was(home: Path) -> None:
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        os.chown(home / name, 65534, 65534)
    report = supervise("require", "{}", cgroup=home, **AS_NOBODY)
    assert report["error"].startswith(
        f"the cgroup is not delegated to us: cannot write {home}: Permission denied; "
    )


@needs_root
def test_a_user_to_whom_it_was_not(home: Path) -> None:
    report, preferred = supervise("require prefer", MEMORY_AND_PIDS, cgroup=home, **AS_NOBODY)
    error = (
        f"the cgroup is not delegated to us: cannot write {home}/cgroup.procs: Permission denied; "
        "let the service manager delegate it (systemd: Delegate=yes in the unit, or "
        "systemd-run --property=Delegate=yes)"
    )
    assert report["error"] == error
    assert (preferred["tree"], preferred["missing"]) == (None, [f"no cgroups: {error}"])
    assert not (home / "supervisor").exists()


READ_ONLY = (
    "the cgroup is not delegated to us: cannot write {home}/cgroup.procs: Read-only file system; "
    "the tree is mounted read-only, as containers have it: "
)


@needs_root
@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("mount -o remount,bind,ro {mount}", READ_ONLY),
        ("umount -l {mount}", "find a cgroup v2 tree in /proc/self/mountinfo: No such file or "),
    ],
    ids=["read-only", "not mounted"],
)
def test_a_tree_that_is_not_available(home: Path, command: str, error: str) -> None:
    words = {"mount": str(mount()), "home": str(home)}
    remounted = REMOUNTED.replace("COMMAND", command.format_map(words))
    report, preferred = supervise(
        "require prefer", "{}", before=remounted, cgroup=home, namespaces=["mnt"]
    )
    assert report["error"].startswith(error.format_map(words))
    assert preferred["tree"] is None
    assert preferred["missing"] == ["no cgroups: " + report["error"]]


def test_two_supervisors_do_not_divide_one_cgroup(home: Path) -> None:
    tree, _ = open_tree("prefer", start=home)
    assert tree is not None
    with tree:
        report = supervise("require", "{}", cgroup=home)
        assert report["error"] == (
            f"lock against other supervisors the cgroup {home}: Resource temporarily unavailable; "
            "another supervisor divides it; start us in a cgroup of our own"
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
def test_the_path_of_a_cgroup_below_a_mount(root: str, path: str, below: str | None) -> None:
    assert _below(root, path) == below
