"""Libraries that start threads when they are imported: numpy's OpenBLAS, the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pyforkfd as ff
from pyforkfd.zygote import Zygote

pytest.importorskip("numpy", reason="numpy is not installed: no wheel for this Python")

POOL = """
import numpy as np
from concurrent.futures import ProcessPoolExecutor
from pyforkfd.zygote import get_context

def work(n):
    return float((np.ones((n, n)) @ np.ones((n, n))).sum())

if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=get_context()) as pool:
        print(*pool.map(work, [10, 300]))
"""
STAYS = """
import numpy, threading
threading.Thread(target=threading.Event().wait, daemon=True, name="stays").start()
def work():
    pass
"""


def test_a_pool_of_a_program_that_imports_numpy(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(POOL)
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("1000.0 27000000.0\n", 0), done.stderr


def test_the_error_names_the_remedy_where_a_thread_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stays.py").write_text(STAYS)
    monkeypatch.syspath_prepend(tmp_path)
    with Zygote(preload=["stays"]) as zygote:
        with pytest.raises(ff.ThreadsError, match=r"stays .*; .*OPENBLAS_NUM_THREADS=1") as caught:
            zygote.spawn("stays:work")
        assert "OPENBLAS_NUM_THREADS=1" in caught.value.remedy
