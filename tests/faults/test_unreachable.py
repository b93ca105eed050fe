"""Weights & Biases that cannot be reached, or whose own process is killed: the run goes on, and says so."""

import contextlib
import os
import signal
import socket
from pathlib import Path

import faults
import pytest
from disturbed import TINY, Child, told, trained

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def service(pid: int) -> int | None:
    """The process of W&B that a run has started, if it is seen; Linux may leave out one while another ends."""
    with contextlib.suppress(FileNotFoundError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None


def test_a_run_whose_service_is_killed_goes_on_and_says_so(tmp_path, injected):
    assert trained((*TINY, "hydra.run.dir=whole", "epochs=60"), tmp_path)[0] == 0
    for number in range(1 if faults.SHORT else 4):
        child = Child((*TINY, f"hydra.run.dir={number}", "epochs=60", "logger=wandb"), tmp_path)
        metrics = tmp_path / str(number) / "metrics.jsonl"
        assert child.until(lambda metrics=metrics: metrics.exists() and metrics.stat().st_size), child.log.read_text()
        found: list[int | None] = []
        assert child.until(lambda child=child, found=found: found.append(service(child.pid)) or found[-1])
        os.kill(found[-1], signal.SIGKILL)
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
