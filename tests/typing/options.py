"""Options of a child, as a type checker sees them; run by mypy, never executed."""

from __future__ import annotations

from typing import assert_type

import pyforkfd as ff
from pyforkfd.zygote import WorkerOptions, Zygote


def spawning(options: ff.CommandOptions) -> None:
    assert_type(ff.spawn(["true"], umask=0o22, fds={1: ff.PIPE}), ff.Process)
    assert_type(ff.spawn(["true"], **options), ff.Process)
    assert_type(ff.Command(["true"], nice=5).umask, int | None)
    assert_type(ff.run(["true"], capture=True, **options), ff.Completed[bytes])
    assert_type(ff.run(["true"], text=True, new_session=True), ff.Completed[str])
    ff.spawn(["true"], umask="022")  # type: ignore[arg-type]
    ff.spawn(["true"], stdout=1)  # type: ignore[call-arg]
    ff.spawn("true", fds=[3])  # type: ignore[arg-type]


def making_workers(zygote: Zygote, options: WorkerOptions) -> None:
    assert_type(zygote.spawn("os:getpid", args=(1,), nice=5), ff.Process)
    assert_type(zygote.spawn("os:getpid", **options), ff.Process)
    assert_type(ff.spawn(["true"], **options), ff.Process)
    zygote.spawn("os:getpid", executable="x")  # type: ignore[call-arg]


def a_status(child: ff.Process) -> bool:
    assert_type(child.wait().success, bool)
    return child.wait().success
