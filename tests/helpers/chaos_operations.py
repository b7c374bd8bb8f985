"""What the chaos test does to its service: one method each, picked at random."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from chaos_harm import Harm, short_of_descriptors
from chaos_load import Load, Outage
from chaos_model import Model
from chaos_service import BASE, PATIENCE, ChaosService, config, pids
from services import free_port

from pyforkfd.supervisor.control._messages import ControlError

MOST = {"web": 4, "fn": 4, "plain": 4, "printer": 2}


class Operations(Harm):
    """All operations.

    Attributes:
        model: what must be true of the number of workers.
        started: how often the service was started again.
    """

    def __init__(self, service: ChaosService, load: Load) -> None:
        super().__init__(service, load)
        self.model = Model()
        self.started = 0
        self._version = 0
        self._waiting: list[threading.Thread] = []

    # Helpers

    def good_file(self) -> dict[str, int]:
        """Write another file that is right; return its numbers of workers."""
        file = dict(BASE)
        if self.random.random() < 0.3:
            name = self.random.choice(sorted(BASE))
            file[name] = self.random.randint(1, MOST[name])
        extra = self.random.random() < 0.3
        self.service.write(self._text(counts=file, extra=extra))
        return file

    def base_file(self) -> None:
        """Write the file with the usual numbers of workers."""
        self.service.write(self._text())

    def _text(self, **changes: Any) -> str:
        self._version += 1
        options = {
            "version": self._version,
            **changes,
        }
        return config(self.service.root, **{"ports": self.service.ports, **options})

    def attempt(self, do: str, **fields: Any) -> dict[str, Any] | str:
        """Send a request; return its reply, or why there is none."""
        try:
            return self.service.request(do, **fields)
        except (ControlError, OSError) as error:
            if "hangs" in str(error):
                self.failures.append(f"{do}: {error}")
            return str(error)

    def join(self) -> None:
        """Wait for the requests that nobody has waited for."""
        for thread in self._waiting:
            thread.join(2 * PATIENCE)
            if thread.is_alive():
                self.failures.append("a reload has no outcome")
        self._waiting.clear()

    # Operations

    def reload_good(self) -> None:
        """Reload a file that is right, and wait."""
        file = self.good_file()
        outcome = self.attempt("reload")
        self.model.reloaded(file, certain=isinstance(outcome, dict))
        self.note = f"{file}: {outcome}"
        if isinstance(outcome, str) and not self.uncertain:
            self.failures.append(f"a reload failed: {outcome}")

    def reload_and_go_on(self) -> None:
        """Request a reload of a file that is right, and do not wait."""
        file = self.good_file()
        self.model.reloaded(file, certain=False)
        self.uncertain = True
        thread = threading.Thread(target=self.attempt, args=("reload",), name="reload")
        self._waiting.append(thread)
        thread.start()
        self.note = str(file)

    def hang_up(self) -> None:
        """SIGHUP to the keeper."""
        file = self.good_file()
        self.model.reloaded(file, certain=False)
        self.uncertain = True
        os.kill(self.service.keeper, signal.SIGHUP)
        self.note = str(file)

    def reload_bad(self) -> None:
        """Reload a file that is wrong: it is refused, and nothing changes."""
        kinds: dict[str, Callable[[], object]] = {
            "no TOML": lambda: self._bad_file("name = ["),
            "unknown key": lambda: self._bad_config(web="colour = 1"),
            "unknown listener": lambda: self._bad_config(web="", replace=('"http"', '"htpp"')),
            "busy port": lambda: self._bad_config(port=self.service.ports["metrics"]),
            "no file": lambda: self.service.file.unlink(missing_ok=True),
            "not UTF-8": lambda: self._bad_file("name = '\udcff'"),
            "no module": lambda: self._bad_config(replace=("chaos_worker:", "no_such_module:")),
            "no program": lambda: self._bad_config(replace=("tiny_server.py", "no_such.py")),
            "exits": lambda: self._bad_config(replace=('"mute"', '"breaks"')),
            "never ready": lambda: self._bad_config(
                web="boot_timeout = 0.5",
                replace=('pid_server.py"', 'tiny_server.py", "-", "hangs"'),
            ),
            "no user": lambda: self._bad_config(web='privileges.user = "nobody-of-ours"'),
            "empty": lambda: self._bad_file(""),
        }
        kind = self.random.choice(sorted(kinds))
        kinds[kind]()
        outcome = self.attempt("reload")
        self.note = f"{kind}: {outcome}"
        if isinstance(outcome, dict):
            self.failures.append(f"a bad file ({kind}) was accepted: {outcome}")
        if self.random.random() < 0.8:  # or it stays, and whatever happens next finds it
            self.base_file()

    def _bad_file(self, text: str) -> None:
        self.service.file.write_bytes(text.encode(errors="surrogateescape"))

    def _bad_config(
        self, *, web: str = "", replace: tuple[str, str] = ("", ""), port: int | None = None
    ) -> None:
        ports = self.service.ports if port is None else {**self.service.ports, "web": port}
        text = self._text(ports=ports, web=web)
        if replace[0]:
            assert replace[0] in text, replace
            text = text.replace(*replace)
        self.service.write(text)

    def reload_absurd(self) -> None:
        """Reload a file with values beyond all measure, or scale so: it is refused."""
        kinds: dict[str, Callable[[], object]] = {
            "nested": lambda: self.service.write(f"x = {'[' * 5000}{']' * 5000}\n{self._text()}"),
            "digits": lambda: self._bad_config(web=f"boot_timeout = {'9' * 5000}"),
            "backlog": lambda: self._bad_config(
                port=free_port(),
                replace=("[listeners.http]", f"[listeners.http]\nbacklog = {10**11}"),
            ),
            "stale_after": lambda: self._bad_config(web="heartbeat = { stale_after = 1e300 }"),
            "workers": lambda: self._bad_config(replace=("workers = 2", f"workers = {10**9}")),
            "scale": lambda: None,
        }
        kind = self.random.choice(sorted(kinds))
        kinds[kind]()
        if kind == "scale":
            outcome = self.attempt("scale", component="web", count=10**9)
        else:
            outcome = self.attempt("reload")
        self.note = f"{kind}: {outcome}"
        if isinstance(outcome, dict):
            self.failures.append(f"what is absurd ({kind}) was accepted: {outcome}")
        self.base_file()

    def reload_fifo(self) -> None:
        """Reload a FIFO that nobody writes to."""
        self.service.file.unlink(missing_ok=True)
        os.mkfifo(self.service.file)
        outcome = self.attempt("reload")
        self.note = str(outcome)
        if isinstance(outcome, dict):
            self.failures.append(f"a FIFO was accepted: {outcome}")
        self.base_file()

    def restart_many(self) -> None:
        """Twelve workers, restarted as by default, die together."""
        self.service.status()  # a supervisor is there
        outcome = self.attempt("scale", component="plain", count=12)
        self.model.scaled("plain", 12, certain=False)
        if isinstance(outcome, str):  # it was short of something, or has just been killed
            self.note = outcome
            return
        self.service.await_status(lambda status: len(pids(status, "plain")) == 12)
        self.kill_workers("plain", pids(self.service.status(), "plain"))

    def scale(self) -> None:
        """Scale a component."""
        name = self.random.choice(sorted(BASE))
        count = self.random.randint(1, MOST[name])
        outcome = self.attempt("scale", component=name, count=count)
        self.model.scaled(name, count, certain=isinstance(outcome, dict))
        self.note = f"{name} {count}: {outcome}"
        if isinstance(outcome, str) and not self.uncertain:
            self.failures.append(f"scale was refused: {outcome}")

    def restart(self) -> None:
        """Restart one worker."""
        status = self.service.status()
        ids = [w["id"] for one in status["components"] for w in one["workers"]]
        if ids:
            worker = self.random.choice(ids)
            self.note = f"{worker}: {self.attempt('restart', worker=worker)}"

    def kill_keeper(self) -> None:
        """Kill the keeper: the supervisor stops in order; start the service again."""
        self.service.status()  # a supervisor is there, which is to end
        self.base_file()
        begun = time.monotonic()
        left = self.service.kill_keeper()
        if left:
            self.failures.append(f"left behind after the keeper's death: {left}")
        self.join()
        self.service.start()
        self.load.outages.append(Outage(component="", begun=begun, over=time.monotonic()))
        self.model = Model()
        self.uncertain = False
        self.started += 1

    def upgrade(self) -> None:
        """SIGUSR2: the supervisor executes itself anew."""
        self.service.status()
        before = self.service.lines()
        os.kill(self.service.keeper, signal.SIGUSR2)
        self.note = self.service.wait_for("took over .*|nothing has changed.*", after=before)
        self.uncertain = True

    def run_out_of_descriptors(self) -> None:
        """The supervisor has no descriptors to spare for a moment, and needs some."""
        pid = self.service.status()["pid"]
        with short_of_descriptors(pid, self.random.randint(0, 8)) as limit:
            self.note = f"limit {limit}"
            for _ in range(2):
                self.random.choice([self.kill_worker_unseen, self.try_scale, self.try_reload])()
            time.sleep(self.random.uniform(0.1, 1.0))
        self.uncertain = True

    def kill_worker_unseen(self) -> None:
        marked = [pid for pid, what in self.service.marked().items() if "pid_server" in what]
        if marked:
            self.kill_workers("web", [self.random.choice(marked)])

    def try_scale(self) -> None:
        try:
            self.service.request("scale", timeout=1.0, component="web", count=4)
        except (ControlError, OSError) as error:
            self.note += f" scale: {error}"
        self.model.scaled("web", 4, certain=False)

    def try_reload(self) -> None:
        self.model.reloaded(self.good_file(), certain=False)
        try:
            self.service.request("reload", timeout=1.0)
        except (ControlError, OSError) as error:
            self.note += f" reload: {error}"

    def read_everything(self) -> None:
        """Requests that only read, and a scrape of the metrics."""
        if self.uncertain:
            self.service.status()
        self.note = ", ".join(
            f"{do} {'ok' if isinstance(self.attempt(do), dict) else 'failed'}"
            for do in ("ping", "logs", "status")
        )
        try:
            url = f"http://127.0.0.1:{self.service.ports['metrics']}/metrics"
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                self.note += f", {len(answer.read())} bytes of metrics"
        except OSError as error:
            self.note += f", {error}"

    def wait(self) -> None:
        """Nothing, for a moment."""
        time.sleep(self.random.uniform(0.2, 1.0))
