"""Files in directories in which another user decides what a name means."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from pyforkfd._trust import UntrustedPathError
from pyforkfd._trusted_files import demand_socket_place, read_file
from pyforkfd._trusted_paths import walk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="another user's files want root")

OTHER = 54_321
APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of the other user's, beside a file of root's."""
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, OTHER, OTHER)
    (tmp_path / "secret").write_text("root only")
    return directory


def opened(path: Path, flags: int = APPEND) -> os.stat_result:
    with walk(str(path.parent)) as directory:
        fd = directory.open_file(path.name, flags)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def test_a_new_file_is_the_other_users(theirs: Path) -> None:
    assert opened(theirs / "log").st_uid == OTHER
    assert opened(theirs / "log").st_uid == OTHER, "and is opened again"


def test_a_link_is_refused(theirs: Path) -> None:
    (theirs / "log").symlink_to("../secret")
    with pytest.raises(UntrustedPathError, match="symbolic link") as why:
        opened(theirs / "log")
    assert why.value.errno == errno.ELOOP


def test_a_link_on_the_way_is_refused(theirs: Path) -> None:
    (theirs / "logs").symlink_to("..")
    with pytest.raises(UntrustedPathError, match="symbolic link"):
        opened(theirs / "logs" / "secret")


def test_another_name_of_a_file_is_refused(theirs: Path) -> None:
    os.link(theirs.parent / "secret", theirs / "log")
    with pytest.raises(UntrustedPathError, match="has 2 names"):
        opened(theirs / "log")


def test_a_moved_file_of_roots_is_refused(theirs: Path) -> None:
    (theirs / "log").write_text("")
    with pytest.raises(UntrustedPathError, match="may have moved it there"):
        opened(theirs / "log")


def test_a_moved_directory_of_roots_is_refused(theirs: Path) -> None:
    (theirs / "logs").mkdir()
    with pytest.raises(UntrustedPathError, match="may have moved it there"):
        opened(theirs / "logs" / "log")


def test_a_link_of_roots_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    opened(tmp_path / "link" / "log")
    assert (tmp_path / "real" / "log").exists()


@pytest.mark.parametrize("flags", [APPEND, os.O_RDONLY])
def test_a_fifo_delays_nothing(theirs: Path, flags: int) -> None:
    os.mkfifo(theirs / "log")
    begun = time.monotonic()
    with pytest.raises(OSError, match="regular file"):
        opened(theirs / "log", flags)
    with pytest.raises(OSError, match="regular file"):
        read_file(str(theirs / "log"), 100)
    assert time.monotonic() - begun < 5


def test_names_that_others_may_replace_are_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with walk(str(tmp_path)) as directory, pytest.raises(UntrustedPathError, match="everybody"):
        directory.demand_lasting_names("the log")
    tmp_path.chmod(0o1777)
    with walk(str(tmp_path)) as directory:
        directory.demand_ours("the log")


def test_the_place_of_a_socket(theirs: Path) -> None:
    demand_socket_place(str(theirs / "socket"))
    with pytest.raises(UntrustedPathError, match="could replace socket"):
        demand_socket_place(str(theirs / "socket"), ours=True)
    (theirs / "below").mkdir()
    os.chown(theirs / "below", OTHER, OTHER)
    with pytest.raises(UntrustedPathError, match="a directory above"):
        demand_socket_place(str(theirs / "below" / "socket"))
