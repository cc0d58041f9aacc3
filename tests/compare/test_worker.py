import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gkd_plugin.compare.worker import run_cell
from gkd_plugin.errors import ConfigError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConfigError("x.yaml: too small\n  more"), "x.yaml: too small"),
        (RuntimeError("Caught it\nout of memory"), "RuntimeError: out of memory"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_why_a_cell_failed_is_one_line(tmp_path, monkeypatch, error, reason):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("gkd_plugin.runner.run.run_config", fail)
    monkeypatch.setattr("gkd_plugin.config.config.load_config", lambda path: None)
    (tmp_path / "c.yaml").write_text("train: {}")
    assert run_cell(tmp_path / "c.yaml", tmp_path / "run", 0, None, None) == reason
    assert not (tmp_path / "run/inputs.json").exists()


ASKS_TWICE = """
import os, signal, sys, time
from pathlib import Path
from gkd_plugin.compare.worker import start_worker
from tests.compare.fakes import SLOW, run_by_seed
if __name__ == "__main__":
    connection, process = start_worker(run_by_seed, 1)
    connection.send((None, Path("first"), 0, None, None))
    assert connection.recv() == ""
    os.kill(process.pid, signal.SIGINT)
    connection.send((None, Path("slow"), SLOW, None, None))
    while not Path("slow/pid").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_outlives_ctrl_c_and_ends_with_its_parent(tmp_path):
    """However that ends, in the middle of a cell."""
    (tmp_path / "asks.py").write_text(ASKS_TWICE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    asked = subprocess.run([sys.executable, "asks.py"], check=False, cwd=tmp_path, env=environment, timeout=300)
    assert asked.returncode == -signal.SIGKILL
    worker = int((tmp_path / "slow/pid").read_text())
    for _ in range(600):
        if not is_alive(worker):
            return
        time.sleep(0.1)
    pytest.fail("the worker goes on")


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text()
