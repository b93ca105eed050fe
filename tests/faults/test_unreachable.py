"""Weights & Biases that cannot be reached, or whose own process is killed: the run goes on, and says so."""

import itertools
import os
import signal
import socket
from pathlib import Path

import faults
import pytest
from disturbed import TINY, Child, told, trained

from aavae.loggers.wandb import WandB

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def service(pid: int) -> int:
    """The process of W&B that a run has started."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError(f"{pid} has no service")


def stopped(pid: int) -> bool:
    """Whether a process has been stopped by SIGSTOP."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def stop_at_the_third_line() -> None:
    """In the run: stop when a third line is to be logged, so that the service can be found and killed meanwhile."""
    log, lines = WandB.log, itertools.count(1)

    def stopping(self, *given):
        if next(lines) == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        log(self, *given)

    WandB.log = stopping


def test_a_run_whose_service_is_killed_goes_on_and_says_so(tmp_path, injected):
    assert trained((*TINY, "hydra.run.dir=whole"), tmp_path)[0] == 0
    for number in range(1 if faults.SHORT else 4):
        child = Child((*TINY, f"hydra.run.dir={number}", "logger=wandb"), tmp_path, (stop_at_the_third_line,))
        assert child.until(lambda child=child: stopped(child.pid)), child.log.read_text()
        os.kill(service(child.pid), signal.SIGKILL)
        os.kill(child.pid, signal.SIGCONT)
        code, said = child.ended()
        assert code == 0 and said.count("logger wandb failed (") == 1 and "Traceback" not in said, said
        assert told(tmp_path / str(number)) == told(tmp_path / "whole")
        injected["the run went on without W&B"] += 1


@pytest.mark.skipif(faults.SHORT, reason="W&B itself waits for half a minute; `make test-faults` does")
@pytest.mark.parametrize("kind", ["nobody answers", "somebody is silent", "no such name"])
def test_a_server_that_cannot_be_reached_is_said_and_the_run_is_kept(tmp_path, injected, kind):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if kind == "nobody answers":
            server.close()
        env = {"WANDB_API_KEY": "0123456789" * 4, "WANDB_MODE": "online"}
        env["WANDB_BASE_URL"] = "http://wandb.invalid" if kind == "no such name" else address
        code, said = trained((*TINY, "logger=wandb"), tmp_path, env=env)
    assert code == 0 and "Traceback" not in said, said
    assert "Weights & Biases cannot be reached" in said and said.count("the run continues offline") == 1, said
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(told(tmp_path / "run")) == 4
    injected["kept offline"] += 1
