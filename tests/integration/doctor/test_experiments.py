"""The doctor's experiments: every statement holds here, and every one of them can fail."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import sys
import threading
from collections.abc import Callable

import pytest

from pyforkfd import doctor
from pyforkfd.doctor import _marks, _passing, _sharing
from pyforkfd.doctor._experiments import Experiment, Impossible, Observation, Trial
from pyforkfd.doctor._registry import EXPERIMENTS

BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}
each = pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)


def run(experiment: Experiment, trial: Trial) -> doctor.Outcome:
    return dataclasses.replace(experiment, trial=trial).run()


def skip_if_impossible(outcome: doctor.Outcome) -> None:
    if outcome.verdict == "impossible":
        assert outcome.name == "marks-timerfd" and sys.version_info < (3, 13), outcome
        pytest.skip(outcome.seen)


@each
def test_it_is_so(experiment: Experiment) -> None:
    outcome = experiment.run()
    skip_if_impossible(outcome)
    assert outcome.verdict == "confirmed", outcome
    assert outcome.seen and outcome.control_seen
    assert (outcome.statement, outcome.belief) == (experiment.statement, experiment.belief)


@each
def test_it_can_fail(experiment: Experiment) -> None:
    """Where the statement does not hold, the same trial contradicts it."""
    outcome = run(experiment, lambda _: experiment.trial(True))
    skip_if_impossible(outcome)
    assert outcome.verdict == "contradicted" and outcome.seen, outcome
    assert not outcome.ok


@each
def test_a_control_that_is_not_distinguished_proves_nothing(experiment: Experiment) -> None:
    outcome = run(experiment, lambda _: experiment.trial(False))
    skip_if_impossible(outcome)
    assert outcome.verdict == "unproven" and not outcome.ok, outcome


def test_each_has_a_name_and_all_texts() -> None:
    assert len(BY_NAME) == len(EXPERIMENTS) > 60
    assert len({experiment.statement for experiment in EXPERIMENTS}) == len(EXPERIMENTS)
    for experiment in EXPERIMENTS:
        texts = experiment.statement, experiment.belief, experiment.control, experiment.section
        assert all(texts) and not any("|" in text or "\n" in text for text in texts)


# Worlds that are otherwise: what the experiments call does something else.


def unmarked(call: Callable[..., int]) -> Callable[..., int]:
    def otherwise(*args: object) -> int:
        fd = call(*args)
        os.set_inheritable(fd, True)
        return fd

    return otherwise


def test_a_dup_that_does_not_mark_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "dup", unmarked(os.dup))
    assert BY_NAME["marks-dup"].run().verdict == "contradicted"
    assert BY_NAME["duplicates-have-their-own-mark"].run().verdict == "contradicted"
    assert BY_NAME["marks-open"].run().verdict == "confirmed"


def test_an_open_that_does_not_mark_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", unmarked(os.open))
    assert BY_NAME["marks-os-open"].run().verdict == "contradicted"
    assert BY_NAME["exec-closes-the-marked"].run().verdict == "contradicted"


def test_a_mark_that_stays_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_passing, _marks, _sharing):
        monkeypatch.setattr(module, "set_cloexec", lambda fd, on: None)
    for name in ("listener-by-exec", "exec-closes-the-marked", "exec-keeps-the-offset"):
        assert BY_NAME[name].run().verdict == "contradicted", name
    assert BY_NAME["marks-open"].run().verdict == "unproven", "its control did nothing"


def test_a_listener_that_does_not_listen_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(socket, "socket", Deaf)
    outcome = BY_NAME["listener-by-fork"].run()
    assert (outcome.verdict, outcome.seen) == ("contradicted", "accept: EINVAL")


def test_a_fork_that_shares_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sharing, "in_fork", lambda act: "")
    for name in ("fork-shares-the-offset", "nonblocking-is-shared", "epoll-is-shared"):
        assert BY_NAME[name].run().verdict == "contradicted", name


# What becomes of errors.


def raising(error: Exception, *, control: bool) -> Trial:
    def trial(is_control: bool) -> Observation:
        if is_control is control:
            raise error
        return Observation(not is_control, "as it should be")

    return trial


def test_errors_are_never_a_confirmation() -> None:
    some = EXPERIMENTS[0]
    outcome = run(some, raising(OSError(errno.EBADF, "Bad file descriptor"), control=False))
    assert outcome.verdict == "contradicted" and "Bad file descriptor" in outcome.seen
    outcome = run(some, raising(RuntimeError("broken"), control=False))
    assert outcome.verdict == "contradicted" and outcome.seen == "RuntimeError: broken"
    outcome = run(some, raising(OSError(errno.EBADF, "Bad file descriptor"), control=True))
    assert outcome.verdict == "unproven" and "Bad file descriptor" in outcome.control_seen
    for error in (OSError(errno.ENOSYS, "not here"), Impossible("not here")):
        for control in (False, True):
            outcome = run(some, raising(error, control=control))
            assert outcome.verdict == "impossible" and "not here" in outcome.seen


def test_all_of_them_beside_other_threads() -> None:
    """Forks in a process with threads: no deadlock, no warning, nothing left behind."""
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        outcomes = list(doctor.experiments())
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert [outcome.name for outcome in outcomes] == list(BY_NAME)
    assert [outcome for outcome in outcomes if not outcome.ok] == []
