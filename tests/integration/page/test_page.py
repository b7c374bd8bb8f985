"""The page of slots: what one process writes there another one reads."""

from __future__ import annotations

import copy
import errno
import fcntl
import gc
import inspect
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from forked import in_child

import pyforkfd as ff
from pyforkfd import _core

WORKER = """
import pyforkfd as ff
with ff.SharedPage(5) as page:
    slot = page.slot(3)
slot.beat()
slot.add(40, errors=2)
slot.begin()
slot.begin()
slot.end(errors=1)
slot.set_ready(True)
slot.set_deadline(12345)
"""


def test_a_program_that_is_given_the_page_writes_into_its_slot() -> None:
    with ff.SharedPage.create(8) as page:
        slot = page.slot(3)
        slot.claim(worker=12, generation=4)
        begun = time.monotonic_ns()
        child = ff.spawn([sys.executable, "-P", "-c", WORKER], fds={5: page})
        assert child.wait(timeout=60).success
        said = page.snapshots()[3]
        assert said == slot.snapshot()
        assert (said.requests, said.errors, said.in_flight) == (41, 3, 1)
        assert (said.worker, said.generation, said.deadline_ns) == (12, 4, 12345)
        assert begun <= said.beat_ns <= said.ready_ns <= time.monotonic_ns()
        empty = (0,) * len(said)
        assert [tuple(row) for row in page.snapshots()[:3] + page.snapshots()[4:]] == [empty] * 7


def test_a_new_worker_finds_nothing_of_the_old_one() -> None:
    with ff.SharedPage.create(1) as page:
        slot = page.slot(0)
        slot.claim(worker=1, generation=1)
        slot.beat()
        slot.end(errors=2**64 - 1)
        slot.set_ready(True)
        slot.set_deadline(2**64 - 1)
        assert 0 not in slot.snapshot()
        slot.claim(worker=2, generation=3)
        assert tuple(slot.snapshot()) == (0, 0, 0, 0, 0, 0, 2, 3)
        slot.clear()
        assert not any(slot.snapshot())


def test_promises_and_readiness_can_be_taken_back() -> None:
    with ff.SharedPage.create(1) as page:
        slot = page.slot(0)
        slot.set_ready(True)
        slot.set_deadline(5)
        assert slot.snapshot().deadline_ns == 5
        slot.set_ready(False)
        slot.set_deadline(None)
        assert slot.snapshot().ready_ns == slot.snapshot().deadline_ns == 0


def test_threads_lose_no_count() -> None:
    rounds = 5000
    with ff.SharedPage.create(1) as page:
        slot = page.slot(0)

        def work() -> None:
            for _ in range(rounds):
                slot.begin()
                slot.end(errors=1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        said = slot.snapshot()
        assert (said.requests, said.errors, said.in_flight) == (4 * rounds, 4 * rounds, 0)


def test_the_generation_is_seen_by_all() -> None:
    with ff.SharedPage.create(2) as page, ff.SharedPage(os.dup(page.fileno())) as other:
        assert other.generation == 0
        page.generation = 7
        assert other.generation == 7
        assert in_child(lambda: page.generation) == 7
        with pytest.raises(TypeError):
            page.generation = -1


def test_a_slot_outlives_the_page_and_nothing_outlives_both() -> None:
    def mappings() -> int:
        with open("/proc/self/maps") as maps:
            return sum("forkfd-page" in line for line in maps)

    gc.collect()  # of other tests
    before = mappings()
    page = ff.SharedPage.create(1)
    slot = page.slot(0)
    page.close()
    page.close()
    with pytest.raises(ValueError, match="closed"):
        page.fileno()
    del page
    gc.collect()
    slot.add(3)
    assert slot.snapshot().requests == 3
    assert mappings() == before + 1
    del slot
    assert mappings() == before


def test_the_descriptor_is_taken_and_made_close_on_exec() -> None:
    with ff.SharedPage.create(2) as page:
        assert ff.cloexec(page)
        number = os.dup(page.fileno())
        os.set_inheritable(number, True)
        with ff.SharedPage(number) as adopted:
            assert adopted.fileno() == number and ff.cloexec(number)
            assert len(adopted) == 2
    with pytest.raises(OSError) as closed:
        os.fstat(number)
    assert closed.value.errno == errno.EBADF


def refused(fd: int) -> ff.PageError:
    before = os.get_inheritable(fd) if fd >= 0 else None
    with pytest.raises(ff.PageError) as caught:
        ff.SharedPage(fd)
    assert caught.value.fd == fd
    assert before is None or os.get_inheritable(fd) is before  # it is as it was
    return caught.value


def test_what_is_no_page_is_left_alone_and_said(other_fd: int) -> None:
    os.set_inheritable(other_fd, True)
    assert str(refused(other_fd)) == (
        f"descriptor {other_fd} is a memfd that may shrink, and so no page of slots"
    )
    with open("/dev/null") as null:
        error = refused(null.fileno())
        assert "is no memfd" in str(error) and error.errno == errno.EINVAL
    assert refused(-1).errno == errno.EBADF
    with pytest.raises(TypeError, match="not a descriptor number"):
        ff.SharedPage("5")  # type: ignore[arg-type]
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.fd, str(copied)) == (error.fd, str(error))


def test_a_closed_number_is_said() -> None:
    number = os.dup(0)
    os.close(number)
    with pytest.raises(ff.PageError, match="is not open"):
        ff.SharedPage(number)


def test_another_version_is_said() -> None:
    with ff.SharedPage.create(1) as page:
        os.pwrite(page.fileno(), (9).to_bytes(4, sys.byteorder), 16)
        message = f"descriptor {page.fileno()} is a page of version 9; this program knows version 1"
        assert str(refused(page.fileno())) == message


def test_a_page_that_may_not_be_written_to_is_said() -> None:
    with ff.SharedPage.create(1) as page:
        number = os.open(f"/proc/self/fd/{page.fileno()}", os.O_RDONLY)
        try:
            error = refused(number)
            assert error.errno == errno.EACCES and "cannot be mapped" in str(error)
        finally:
            os.close(number)


def test_its_size_cannot_be_changed() -> None:
    with ff.SharedPage.create(3) as page:
        for size in (0, 64, 4096):
            with pytest.raises(PermissionError):
                os.truncate(page.fileno(), size)
        seals = fcntl.fcntl(page.fileno(), fcntl.F_GET_SEALS)
        for seal in (fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL):
            assert seals & seal


@pytest.mark.parametrize("slots", [-1, 0, 65537, 2**32])
def test_so_many_slots_cannot_be(slots: int) -> None:
    with pytest.raises(ValueError, match="slots"):
        ff.SharedPage.create(slots)


def test_without_descriptors_there_is_no_page_and_nothing_is_left() -> None:
    code = """
import os, resource, pyforkfd as ff
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    ff.SharedPage.create(1)
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "memfd_create: Too many open files" in done.stdout


@pytest.mark.parametrize("index", [-1, 3, 2**31])
def test_there_is_no_such_slot(index: int) -> None:
    with ff.SharedPage.create(3) as page, pytest.raises(IndexError, match="of 3"):
        page.slot(index)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda s: s.add(-1), OverflowError, "negative"),
        (lambda s: s.add(2**64), OverflowError, "too (big|large)"),
        (lambda s: s.add("1"), TypeError, "integer"),
        (lambda s: s.add(1.5), TypeError, "integer"),
        (lambda s: s.add(1, 2, 3), TypeError, "add: too many arguments"),
        (lambda s: s.add(1, requests=2), TypeError, "add: unknown or given twice: requests"),
        (lambda s: s.add(error=2), TypeError, "add: unknown or given twice: error"),
        (lambda s: s.end(requests=1), TypeError, "end: unknown"),
        (lambda s: s.beat(1), TypeError, "no arguments"),
        (lambda s: s.claim(1, 2), TypeError, "worker, generation: keyword-only"),
        (lambda s: s.claim(worker=0, generation=1), ValueError, "worker: must not be 0"),
        (lambda s: s.claim(generation=1), ValueError, "worker: must not be 0"),
        (lambda s: s.set_deadline(-1), OverflowError, "negative"),
        (lambda s: s.set_deadline("soon"), TypeError, "integer"),
        (lambda s: copy.copy(s), TypeError, "pickle"),
        (lambda s: type(s)(), TypeError, "cannot create"),
    ],
)
def test_bad_arguments_change_nothing(
    call: Callable[[Any], object], kind: type[Exception], text: str
) -> None:
    with ff.SharedPage.create(1) as page:
        with pytest.raises(kind, match=text):
            call(page.slot(0))
        assert not any(page.slot(0).snapshot())


def test_a_snapshot_is_a_value() -> None:
    with ff.SharedPage.create(1) as page:
        page.slot(0).add(5)
        said = page.slot(0).snapshot()
    assert pickle.loads(pickle.dumps(said)) == said == ff.SlotSnapshot(said)
    assert "requests=5" in repr(said)
    with pytest.raises(AttributeError):
        said.requests = 6  # type: ignore[misc]


def test_nothing_leaks_in_many_calls() -> None:
    with ff.SharedPage.create(4) as page:
        slot = page.slot(1)
        slot.claim(worker=2**60, generation=2**60)
        for _ in range(3):  # the first rounds fill caches
            gc.collect()
            before = sys.getallocatedblocks()
            for _ in range(1000):
                page.snapshots()
                slot.add(errors=1)
                page.slot(2).beat()
                with pytest.raises(TypeError):
                    slot.add(1, requests=2)  # type: ignore[misc]
            gc.collect()
            grown = sys.getallocatedblocks() - before
        assert grown < 100


def test_methods_have_signatures() -> None:
    assert str(inspect.signature(_core.Slot.add)) == "(self, /, requests=1, errors=0)"
    assert str(inspect.signature(_core.Slot.claim)) == "(self, /, *, worker, generation)"
