"""Users, groups, capabilities; and that the parent keeps its own."""

from __future__ import annotations

import errno
import grp
import os
import pwd
from collections.abc import Iterable
from pathlib import Path

import pytest
from children import Children, needs_root

import pyforkfd as ff
from pyforkfd import _core

NOBODY = pwd.getpwnam("nobody")
NAMES = _core.capability_names()


def bits(*names: str) -> int:
    return sum(1 << NAMES.index(name) for name in names)


def groups_of(entry: pwd.struct_passwd) -> list[int]:
    return sorted(os.getgrouplist(entry.pw_name, entry.pw_gid))


@needs_root
@pytest.mark.parametrize("user", ["nobody", NOBODY.pw_uid])
def test_user_brings_its_groups(children: Children, user: str | int) -> None:
    seen = children.look(user=user)
    assert seen["uid"] == [NOBODY.pw_uid] * 3
    assert seen["gid"] == [NOBODY.pw_gid] * 3
    assert seen["groups"] == groups_of(NOBODY)
    assert seen["capabilities"]["permitted"] == 0
    assert os.getresuid() == (0, 0, 0)


@needs_root
def test_user_that_keeps_our_groups(children: Children) -> None:
    seen = children.look(user="nobody", group=ff.KEEP, extra_groups=ff.KEEP)
    assert seen["uid"] == [NOBODY.pw_uid] * 3
    assert seen["gid"] == list(os.getresgid())
    assert seen["groups"] == sorted(os.getgroups())


@needs_root
@pytest.mark.parametrize("group", ["daemon", 12345])
def test_group(children: Children, group: str | int) -> None:
    seen = children.look(group=group, extra_groups=["daemon", 70000])
    number = grp.getgrnam(group).gr_gid if isinstance(group, str) else group
    assert seen["gid"] == [number] * 3
    assert seen["groups"] == [grp.getgrnam("daemon").gr_gid, 70000]
    assert seen["uid"] == [0, 0, 0]


@needs_root
def test_no_extra_groups(children: Children) -> None:
    assert children.look(extra_groups=[])["groups"] == []


@needs_root
def test_a_user_without_entry_needs_a_group(children: Children) -> None:
    with pytest.raises(ValueError, match="user: 54321 is not in the user database: write group="):
        children.start(["true"], user=54321)
    seen = children.look(user=54321, group=54322)
    assert (seen["uid"], seen["gid"], seen["groups"]) == ([54321] * 3, [54322] * 3, [])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"user": "no such user"}, "user: 'no such user' is not in the user database"),
        ({"group": "no such group"}, "group: 'no such group' is not in the group database"),
        (
            {"extra_groups": ["no such group"]},
            "extra_groups: 'no such group' is not in the group database",
        ),
    ],
)
def test_unknown_names(names: dict[str, str], message: str) -> None:
    with pytest.raises(LookupError, match=message):
        ff.Command(["true"], **names)  # type: ignore[arg-type]


@needs_root
def test_the_directory_is_entered_as_the_new_user(children: Children, shared_path: Path) -> None:
    private = shared_path / "private"
    private.mkdir(mode=0o700)
    assert children.look(cwd=private)["cwd"] == str(private)
    with pytest.raises(PermissionError) as caught:
        children.start(["true"], user="nobody", cwd=private)
    assert str(caught.value) == f"spawn true: change directory: {private}: Permission denied"


@needs_root
def test_the_program_is_executed_as_the_new_user(children: Children, shared_path: Path) -> None:
    program = shared_path / "private"
    program.write_bytes(children.program.read_bytes())
    program.chmod(0o700)
    with pytest.raises(PermissionError) as caught:
        children.start([program], user="nobody")
    assert isinstance(caught.value, ff.SpawnError)
    assert caught.value.stage == "exec"


@needs_root
def test_bounding_set(children: Children) -> None:
    wanted = ff.Capabilities(bounding=["CHOWN", "cap_kill"])
    held = children.look(capabilities=wanted)["capabilities"]
    assert held["bounding"] == bits("CHOWN", "KILL")
    # root gets at exec what the bounding set leaves
    assert held["permitted"] == held["effective"] == bits("CHOWN", "KILL")


@needs_root
def test_ambient_set_survives_the_change_of_user(children: Children) -> None:
    wanted = ff.Capabilities(ambient=["NET_BIND_SERVICE"])
    seen = children.look(user="nobody", capabilities=wanted)
    held, one = seen["capabilities"], bits("NET_BIND_SERVICE")
    assert seen["uid"] == [NOBODY.pw_uid] * 3
    assert held["permitted"] == held["effective"] == held["ambient"] == held["inheritable"] == one


@needs_root
def test_inheritable_set(children: Children) -> None:
    wanted = ff.Capabilities(inheritable=["KILL"])
    held = children.look(user="nobody", capabilities=wanted)["capabilities"]
    assert held["inheritable"] == bits("KILL")
    assert held["permitted"] == 0, "a file without capabilities makes nothing of them"


@needs_root
def test_a_capability_that_the_bounding_set_lacks(children: Children) -> None:
    with pytest.raises(PermissionError) as caught:
        children.start(
            ["true"],
            user="nobody",
            capabilities=ff.Capabilities(
                bounding=["CHOWN"], permitted=["CHOWN"], ambient=["CHOWN"], inheritable=["KILL"]
            ),
        )
    assert isinstance(caught.value, ff.SpawnError)
    assert (caught.value.stage, caught.value.errno) == ("capabilities", errno.EPERM)


@pytest.mark.parametrize("names", [["NO_SUCH"], [64], [-1]])
def test_unknown_capabilities(names: Iterable[str | int]) -> None:
    with pytest.raises(ValueError, match=r"^capabilities: .* is not a capability"):
        ff.Command(["true"], capabilities=ff.Capabilities(bounding=names))


def test_no_new_privs(children: Children) -> None:
    assert children.look(no_new_privs=True)["no_new_privs"] == 1
    assert children.look()["no_new_privs"] == int(
        Path("/proc/self/status").read_text().split("NoNewPrivs:")[1].split()[0]
    )


def test_a_user_that_is_not_mapped_is_refused(children: Children) -> None:
    with pytest.raises(ff.SpawnError) as caught:
        children.start(
            ["true"],
            namespaces=["user"],
            uid_map=[(0, os.geteuid(), 1)],
            user=5,
            group=ff.KEEP,
            extra_groups=ff.KEEP,
        )
    assert str(caught.value) == "spawn true: set user: 5: Invalid argument"
