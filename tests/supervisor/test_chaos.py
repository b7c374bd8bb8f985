"""Everything at once, at random, under load: a service stays what it was asked to be.

PYFORKFD_CHAOS is for how many seconds (12), PYFORKFD_CHAOS_SEED repeats the operations of a run,
PYFORKFD_CHAOS_ONLY=kill_zygote,reload_good draws from these alone, to find out which it takes.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cgroups import fresh_cgroup
from chaos_load import Load
from chaos_log import LINES_IN_A_READ
from chaos_log import PATIENCE as LOG_PATIENCE
from chaos_operations import Operations
from chaos_service import BASE, PATIENCE, ChaosService, brief, config, is_settled, resident
from leaks import gone

from pyforkfd.supervisor.control._messages import ControlError

SECONDS = float(os.environ.get("PYFORKFD_CHAOS", "12"))
# In CI the same operations each time: a change is judged, not luck.  By hand others each time.
OPERATIONS = "22" if "CI" in os.environ else str(random.SystemRandom().randrange(10**6))
SEED = int(os.environ.get("PYFORKFD_CHAOS_SEED", OPERATIONS))
MEMORY_BYTES = 12 << 20  # by which a supervisor may differ from the first: its memory of the log

FLOOD_SECONDS = 0.5  # for a status while others flood the notify socket

WEIGHTS = {
    "reload_good": 8,
    "reload_and_go_on": 4,
    "hang_up": 3,
    "reload_bad": 8,
    "scale": 8,
    "restart": 6,
    "kill_worker": 8,
    "kill_all_workers": 3,
    "kill_supervisor": 6,
    "kill_supervisors": 2,
    "kill_supervisor_and_worker": 3,
    "kill_keeper": 1,
    "kill_zygote": 4,
    "flood_notify_socket": 3,
    "garbage_on_control_socket": 4,
    "garbage_on_channel": 4,
    "print_without_end": 4,
    "fill_disk": 3,
    "move_log": 3,
    "upgrade": 4,
    "run_out_of_descriptors": 3,
    "read_everything": 3,
    "wait": 4,
    "restart_many": 2,
    "reload_absurd": 3,
    "reload_fifo": 2,
    "shut_down_listener": 3,
}
if only := os.environ.get("PYFORKFD_CHAOS_ONLY"):
    WEIGHTS = dict.fromkeys(only.split(","), 1)


class Chaos:
    """One run."""

    def __init__(self, service: ChaosService, load: Load) -> None:
        self.service, self.load = service, load
        self.do = Operations(service, load)
        self.do.flood_seconds = FLOOD_SECONDS
        self.begun = time.monotonic()
        self.last: deque[str] = deque(maxlen=50)
        self.counted: Counter[str] = Counter()
        self.memory: list[tuple[int, int, int]] = []  # supervisor, its bytes, the keeper's
        self.holdings: dict[str, Counter[str]] | None = None
        self.generation = 0, 0  # start, and generation of that start

    def run(self) -> None:
        chance = random.Random(SEED)
        self.settle()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            for _ in range(chance.randint(4, 10)):
                (name,) = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
                self.step(name, chance.randrange(2**32))
            self.settle()
        self.load.stop()
        self.demand([], "after the last operation")

    def step(self, name: str, seed: int) -> None:
        self.do.random.seed(seed)
        self.do.note = ""
        at = time.monotonic() - self.begun
        self.last.append(f"{at:7.2f} {name} (was not finished)")
        try:
            getattr(self.do, name)()
            time.sleep(self.do.random.choice((0.0, self.do.random.uniform(0.0, 0.3))))
        finally:
            note = self.do.note.partition("\n")[0]
            self.last[-1] = f"{at:7.2f} {name} {note}"
        self.counted[name] += 1
        silent = self.load.wait_for_answers()
        self.demand([f"no answer from {name}" for name in silent], name)

    def demand(self, faults: list[str], when: str) -> None:
        """Whatever must hold at every moment."""
        faults += [str(failure) for failure in self.load.unexcused()]
        faults += self.service.find_faults()
        faults += self.do.failures
        assert not faults, f"{when}: " + "\n  ".join(faults)

    def settle(self) -> None:
        """Put everything in order, and compare it with what it was at the beginning."""
        self.last.append(f"{time.monotonic() - self.begun:7.2f} settle")
        self.do.join()
        service = self.service
        status = service.await_status(lambda status: status["condition"] != "reloading")
        wrong = self.do.model.contradictions(status)
        assert not wrong, f"{wrong}\n{brief(status)}"
        assert (self.do.started, status["generation"]) >= self.generation
        self.do.base_file()
        generation = self.reload()
        for name, count in BASE.items():
            service.request("scale", component=name, count=count)
            self.do.model.scaled(name, count, certain=True)
        self.do.model.reloaded(BASE, certain=True)
        self.do.uncertain = False
        status = service.await_status(lambda status: is_settled(status, BASE))
        assert status["generation"] == generation, brief(status)
        assert {one["generation"] for one in status["components"]} == {generation}, brief(status)
        self.generation = self.do.started, generation
        assert gone(lambda: len(service.zygotes(service.status())) == 1, PATIENCE)
        self.compare_holdings()
        self.compare_memory(status["pid"])
        self.compare_log()
        self.demand([], "settled")

    def reload(self) -> int:
        """Reload; another one that is under way ends with this one."""
        for _ in range(3):
            try:
                generation = self.service.request("reload")["generation"]
                assert isinstance(generation, int)
                return generation
            except (ControlError, OSError) as error:
                last = error
                # A signal for a reload or an upgrade was still on its way.
                assert self.do.uncertain, f"a reload failed: {error}"
                self.service.status()
        raise AssertionError(f"three reloads failed, the last: {last}")

    def compare_holdings(self) -> None:
        def now() -> dict[str, Counter[str]]:
            found = self.service.holdings()
            for name in found.values():
                for kind in [kind for kind in name if "/disk/" in kind]:
                    del name[kind]  # how many there are is the log's
            return found

        while self.holdings is None:  # streams of workers that have left are still read
            before = now()
            time.sleep(1.5)
            self.holdings = before if now() == before else None
        before = self.holdings
        if gone(lambda: now() == before, PATIENCE / 2):
            return
        more = {name: found - before[name] for name, found in now().items()}
        fewer = {name: before[name] - found for name, found in now().items()}
        raise AssertionError(f"descriptors: more than at first {more}, fewer {fewer}")

    def compare_memory(self, supervisor: int) -> None:
        self.memory.append((supervisor, resident(supervisor), resident(self.service.keeper)))
        _, ours, keepers = self.memory[-1]
        assert ours < self.memory[0][1] + MEMORY_BYTES, f"supervisor: {self.memory}"
        assert keepers < self.memory[0][2] + (1 << 20), f"keeper: {self.memory}"

    def compare_log(self) -> None:
        """All records are there, or reported as lost."""
        log = self.service.logs[-1]
        log.read()
        full = self.do.full
        torn = [
            line
            for when, line in log.torn
            if not any(begun <= when <= over + LOG_PATIENCE for begun, over in full)
        ]
        assert not torn, f"lines that are no records: {torn[:5]}"
        swallowed = log.swallowed
        for key, writer in log.records.items():
            unstated = writer.missing - writer.stated
            # One whose newline alone was cut off is reported as lost, and there.
            whole = sum(writer.lived(begun, over) for begun, over in full)
            assert -whole <= unstated <= swallowed, f"records of {key} are missing: {writer}"
            swallowed -= max(0, unstated)
        reported = log.stated
        for worker, lines in log.lines.items():
            # What a supervisor has read when it is killed is lost with it.
            kills = sum(lines.lived(when, when) for when in self.service.killed)
            lost = max(0, lines.missing - kills * LINES_IN_A_READ)
            was_full = any(lines.lived(begun, over) for begun, over in full)
            assert was_full or not lost, f"lines of worker {worker} are missing: {lines}"
            assert lost <= reported, f"lines of worker {worker} are lost: {lines}"
            reported -= lost
            broken = log.broken_lines.get(worker, [])
            assert len(broken) <= 2 * kills + 1, f"broken lines of worker {worker}: {broken}"

    def report(self) -> str:
        lines = "\n".join(self.last)
        return (
            f"PYFORKFD_CHAOS_SEED={SEED}, the last operations:\n{lines}\n"
            f"--- standard error:\n{self.service.stderr()}"
        )

    def summary(self) -> str:
        log = self.service.logs
        return (
            f"seed {SEED}: {sum(self.counted.values())} operations {dict(self.counted)}; answers "
            f"{dict(self.load.answers)}, slowest {self.load.slowest:.2f} s, "
            f"{self.load.excused} lost to {len(self.load.outages)} kills; "
            f"log {sum(each.size for each in log)} bytes, {sum(len(e.torn) for e in log)} torn, "
            f"{sum(e.swallowed for e in log)} swallowed; "
            f"memory {self.memory[0]} to {self.memory[-1]}"
        )


@contextmanager
def own_cgroup() -> Iterator[Path | None]:
    """A cgroup for the service, where one can be made."""
    try:
        with fresh_cgroup("chaos") as path:
            yield path
            for start in path.iterdir():
                if start.is_dir():
                    start.rmdir()
    except pytest.skip.Exception:
        yield None


@pytest.mark.timeout(300 + 3 * SECONDS)
def test_chaos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print(f"PYFORKFD_CHAOS_SEED={SEED}")
    with own_cgroup() as cgroup:
        service = ChaosService(tmp_path, cgroup)
        service.write(config(tmp_path, service.ports))
        chaos = None
        try:
            service.start()
            with Load(service.addresses, one_shot=frozenset({"plain"})) as load:
                chaos = Chaos(service, load)
                chaos.run()
            left = service.stop()
            assert not left, f"left behind: {left}"
            for log in service.logs:
                log.close()
            with capsys.disabled():
                print(chaos.summary())
        except Exception as error:
            if chaos is None:
                raise
            raise AssertionError(f"{error}\n{chaos.report()}") from error
        finally:
            service.destroy()
            for log in service.logs:
                log.close()
