"""Files at paths that another user could have prepared, for processes with more privileges.

Whoever may write to a directory decides what its names mean.  A process of root that opens a
path there acts on whatever that user has put in its place: a link to a file of root's, another
name of one, a FIFO that never opens.  So a path is walked from the root directory, name by
name, by descriptors that follow no link, and what was opened is judged by its descriptor, never
by its name.  There are three kinds of directories:

- *ours*: root or this user owns it, and nobody else may write to it.  Links in it are followed.
- *shared*: the same with the sticky bit, such as /tmp: others add names, but change none of ours.
- *another user's*: everything in it, and in what is below, is that user's doing.  Files there
  are that user's too; what belongs to somebody else is refused.

A directory of root's that others may write to without the sticky bit is none of these.

A process without privileges risks its own files alone: it walks as the kernel does, and refuses
only links and second names in a directory that other users may write to.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from dataclasses import dataclass

from ._fd import Fd
from ._trust import UntrustedPathError, is_privileged, is_trusted, other_writers, user_name

_MOST_LINKS = 40  # as path_resolution(7)
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}
CALM = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # a FIFO, a lease or a terminal delays nothing


@dataclass(slots=True)
class Directory:
    """A directory that was walked to.  Owns its descriptor; a context manager.

    Attributes:
        path: as it was given.
        fd: of the kind O_PATH.
        owner: uid of the user whose doing everything in it is; None: nobody's but ours.
        inherited: whether a directory above it is that user's already.
        writers: who else may add names to it, in words; empty: nobody.
        sticky: whether these may change no name but their own.
        gid: its group.
    """

    path: str
    fd: Fd
    owner: int | None
    inherited: bool
    writers: str
    sticky: bool
    gid: int

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.fd.close()

    def fileno(self) -> int:
        """Return the descriptor, for ``dir_fd``; borrowed."""
        return self.fd.fileno()

    @property
    def is_ours(self) -> bool:
        """Whether no other user may add or change a name in it."""
        return self.owner is None and not self.writers

    def demand_lasting_names(self, what: str) -> None:
        """Refuse a directory in which others may replace a file of ours.

        Args:
            what: the thing that is to be there, for the message.

        Raises:
            UntrustedPathError: they may.
        """
        if self.owner is None and self.writers and not self.sticky and is_privileged():
            raise refusal(
                self.path,
                f"{self.writers} may write to this directory, and so replace {what}: "
                "chmod go-w it, or name another",
            )

    def demand_ours(self, what: str) -> None:
        """Refuse a directory in which another user decides what a name means.

        Args:
            what: the thing that is to be there, for the message.

        Raises:
            UntrustedPathError: another user does.
        """
        self.demand_lasting_names(what)
        if self.owner is not None:
            user = user_name(self.owner)
            raise refusal(
                self.path,
                f"this directory is {user}'s, who could replace {what}: name one that only "
                "root may write to, or chown root",
            )

    def open_file(self, name: str, flags: int, mode: int = 0o600, *, links: int = 0) -> int:
        """Open a regular file, and never wait for it; create it where the flags have O_CREAT.

        In another user's directory it is made that user's, and one that exists must be.

        Args:
            name: in this directory.
            flags: of open(2).
            mode: permissions of a new file, less the umask.
            links: number of links that were followed so far.

        Returns:
            The descriptor, close-on-exec; the caller owns it.

        Raises:
            UntrustedPathError: it is a link, or another user's, or has several names, in a
                directory in which another user decides that.
            OSError: it is no regular file, or open(2) failed; the error names the path.
        """
        path = os.path.join(self.path, name)
        created = False
        try:
            try:
                fd, created = self._open(name, flags, mode)
            except OSError as error:
                target = self._link(name) if error.errno == errno.ELOOP else None
                if target is None or links >= _MOST_LINKS:
                    raise
                if not self._is_proc:
                    above, last = os.path.split(os.path.join(self.path, target))
                    with walk(above) as directory:
                        return directory.open_file(last, flags, mode, links=links + 1)
                # Only the kernel knows where this one leads.
                fd = os.open(name, flags | CALM, dir_fd=self.fileno())
        except UntrustedPathError:
            raise
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.EISDIR):  # a FIFO without a reader, a socket
                raise OSError(errno.EINVAL, "is no regular file", path) from None
            if error.filename not in (None, name):  # of a link's target, named already
                raise
            raise OSError(error.errno, error.strerror, path) from None
        try:
            if created and self.owner is not None:
                os.fchown(fd, self.owner, self.gid)
            self._judge(os.fstat(fd), path)
            os.set_blocking(fd, True)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _open(self, name: str, flags: int, mode: int) -> tuple[int, bool]:
        """Open a file; return its descriptor and whether it is new."""
        flags |= os.O_NOFOLLOW | CALM
        create = flags & os.O_CREAT
        for _ in range(100):  # another user may create and remove it all the time
            if not flags & os.O_EXCL:
                try:
                    return os.open(name, flags & ~os.O_CREAT, dir_fd=self.fileno()), False
                except FileNotFoundError:
                    if not create:
                        raise
            try:
                return os.open(name, flags | os.O_EXCL, mode, dir_fd=self.fileno()), True
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
        raise OSError(errno.EAGAIN, "is created and removed all the time")

    def _link(self, name: str) -> str | None:
        """Return the target of a link that may be followed; None: it is no link."""
        try:
            found = os.stat(name, dir_fd=self.fileno(), follow_symlinks=False)
            target = os.readlink(name, dir_fd=self.fileno())
        except OSError:
            return None
        if self.is_ours or (self.sticky and self.owner is None and is_trusted(found.st_uid)):
            return target
        raise _link_refusal(os.path.join(self.path, name), self.owner, self.writers)

    def rename(self, name: str, to: str) -> None:
        """Rename a file within the directory, in the place of another.

        Raises:
            OSError: rename(2) failed; the error names both paths.
        """
        here = self.fileno()
        try:
            os.rename(name, to, src_dir_fd=here, dst_dir_fd=here)
        except OSError as error:
            paths = os.path.join(self.path, name), os.path.join(self.path, to)
            raise OSError(error.errno, error.strerror, paths[0], None, paths[1]) from None

    def unlink(self, name: str) -> None:
        """Remove a name; nothing happens where there is none.

        Raises:
            OSError: unlink(2) failed; the error names the path.
        """
        try:
            os.unlink(name, dir_fd=self.fileno())
        except FileNotFoundError:
            pass
        except OSError as error:
            path = os.path.join(self.path, name)
            raise OSError(error.errno, error.strerror, path) from None

    def has_directory(self, name: str) -> bool:
        """Return whether a name is a directory's."""
        try:
            found = os.stat(name, dir_fd=self.fileno(), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISDIR(found.st_mode)

    @property
    def _is_proc(self) -> bool:
        return os.fstat(self.fileno()).st_dev == os.stat("/proc").st_dev

    def _judge(self, info: os.stat_result, path: str) -> None:
        demand_regular(info, path)
        if self.is_ours:
            return
        who = self.writers or user_name(self.owner or 0)
        if info.st_nlink > 1:
            raise refusal(
                path,
                f"has {info.st_nlink} names, and {who} may have added this one to another's "
                "file: remove it",
            )
        if self.owner is not None and info.st_uid != self.owner:
            owner = user_name(self.owner)
            raise refusal(
                path,
                f"is {user_name(info.st_uid)}'s, in a directory of {owner}'s, who may "
                f"have moved it there: chown it to {owner} or remove it",
            )
        if self.owner is None and is_privileged() and not is_trusted(info.st_uid):
            raise refusal(
                path,
                f"is {user_name(info.st_uid)}'s, in a directory to which {who} may write: "
                "remove it",
            )


def demand_regular(info: os.stat_result, path: str) -> None:
    """Refuse what is no regular file.

    Args:
        info: fstat(2) of it.
        path: its path, for the message.

    Raises:
        OSError: it is none: EISDIR or EINVAL.
    """
    kind = stat.S_IFMT(info.st_mode)
    if kind != stat.S_IFREG:
        number = errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL
        text = f"is {_KINDS.get(kind, 'no file')}; write the path of a regular file"
        raise OSError(number, text, path)


def refusal(path: str, text: str) -> UntrustedPathError:
    return UntrustedPathError(errno.EPERM, text, path)


def _link_refusal(path: str, owner: int | None, writers: str) -> UntrustedPathError:
    who = writers or user_name(owner or 0)
    text = f"is a symbolic link that {who} may have put there, and is not followed: remove it"
    return UntrustedPathError(errno.ELOOP, text, path)


def walk(path: str) -> Directory:
    """Walk to a directory, as the module's description has it.

    Args:
        path: of the directory; a relative one is of the current directory.

    Returns:
        The directory; the caller owns it.

    Raises:
        UntrustedPathError: another user decides where the path leads, and it leads to what is
            not that user's.
        OSError: there is no such directory; the error names the part that is missing.
    """
    if not is_privileged():
        fd = Fd(os.open(path or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        return _directory(path, fd, None, inherited=False)
    root = Fd(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    stack = [_directory("/", root, None, inherited=False)]
    full = path if path.startswith("/") else os.path.join(os.getcwd(), path)
    left = deque(part for part in full.split("/") if part)
    links = 0
    try:
        while left:
            name = left.popleft()
            if name == ".":
                continue
            if name == "..":
                if len(stack) > 1:
                    stack.pop().fd.close()
                continue
            step = _enter(stack[-1], name)
            if isinstance(step, Directory):
                stack.append(step)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if step.startswith("/"):
                while len(stack) > 1:
                    stack.pop().fd.close()
            left.extendleft(reversed([part for part in step.split("/") if part]))
        found = stack.pop()
        found.path = path
        return found
    finally:
        for each in stack:
            each.fd.close()


def _enter(above: Directory, name: str) -> Directory | str:
    """Enter a directory, or return the target of a link that may be followed."""
    path = os.path.join(above.path, name)
    try:
        fd = Fd(os.open(name, _LOOK | os.O_DIRECTORY, dir_fd=above.fileno()))
    except OSError as error:
        found = above._link(name) if error.errno in (errno.ENOTDIR, errno.ELOOP) else None
        if found is None:
            raise OSError(error.errno, error.strerror, path) from None
        if not above._is_proc:
            return found
        fd = Fd(os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=above.fileno()))
    try:
        info = os.fstat(fd.fileno())
        if above.owner is not None:
            if info.st_uid != above.owner:
                owner = user_name(above.owner)
                raise refusal(
                    path,
                    f"is {user_name(info.st_uid)}'s, in a directory of {owner}'s, who "
                    f"may have moved it there: chown it to {owner}, or name another directory",
                )
            return _directory(path, fd, above.owner, inherited=True)
        if not is_trusted(info.st_uid):
            return _directory(path, fd, info.st_uid, inherited=False)
        above.demand_lasting_names(name)
        return _directory(path, fd, None, inherited=False)
    except BaseException:
        fd.close()
        raise


def _directory(path: str, fd: Fd, owner: int | None, *, inherited: bool) -> Directory:
    info = os.fstat(fd.fileno())
    writers = other_writers(fd.fileno(), info)
    sticky = bool(info.st_mode & stat.S_ISVTX)
    return Directory(path, fd, owner, inherited, writers, sticky, info.st_gid)
