"""Threads of a CPU run: as many as there are idle cores, and as before when it is resumed."""

import os
import subprocess
import sys

import pytest
import torch

from aavae.runtime import threads
from aavae.runtime.threads import Clock, free_cores
from aavae.weights import checkpoint

DEBUG = ("trainer=debug", "hydra.run.dir=run", "probe=[]")
SAY = """
from aavae.runtime import threads
print(*threads.settle())
import os, torch
print(torch.get_num_threads(), os.environ.get("GOMP_SPINCOUNT"))
"""


def settled(load: float, **environment: str) -> tuple[str, str]:
    """What a new process settles on where so many of eight cores are free."""
    free = SAY.replace("threads\n", f"threads\nthreads.free_cores = lambda *_: {load}\n", 1)
    own = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ended = subprocess.run([sys.executable, "-c", free], env=own | environment, capture_output=True, text=True)
    said, found = ended.stdout.splitlines()
    return said, found


@pytest.mark.slow
def test_a_busy_machine_gives_one_thread_and_says_so_and_waiting_is_short():
    said, found = settled(0.4)
    assert said.startswith("1 the machine is busy: about 0.4 of") and found == f"1 {threads.SPIN}"


@pytest.mark.slow
def test_what_the_user_has_chosen_is_kept():
    # Never more threads than cores, whatever is asked for: torch's own limit.
    two = str(min(2, len(threads.cores())))
    assert settled(0.0, OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive")[1] == f"{two} None"
    assert settled(0.0, OMP_NUM_THREADS="2", GOMP_SPINCOUNT="7")[1] == f"{two} 7"
    # A sweep's word is not the user's.
    assert settled(1.0, OMP_NUM_THREADS="2", AAVAE_SHARED_CORES="1")[1] == f"1 {threads.SPIN}"


@pytest.mark.parametrize(
    ("idle", "own", "expected"),
    [(2.0, 0.0, 2.0), (1.0, 1.0, 2.0), (0.0, 1.0, 1.0), (0.5, 0.5, 1.0), (9.0, 9.0, 2.0), (None, 0.0, 2.0)],
)
def test_free_cores_are_those_that_idle_and_the_own(monkeypatch, idle, own, expected):
    monkeypatch.setattr(threads, "cores", lambda: [0, 1])
    monkeypatch.setattr(threads, "quota", lambda: 64.0)
    began = Clock(10.0, 100.0, 3.0)
    ended = Clock(12.0, None if idle is None else 100.0 + 2 * idle, 3.0 + 2 * own)
    assert free_cores(began, ended) == expected
    monkeypatch.setattr(threads, "quota", lambda: 0.5)
    assert free_cores(began, ended) == 0.5


def test_only_the_cores_that_this_process_may_use_are_counted(monkeypatch, tmp_path):
    rows = ["cpu  9 9 9 9999 9 0 0 0 0 0", *(f"cpu{n} 5 0 5 {100 * (n + 1)} 7 0 0 0 0 0" for n in range(12)), "ctxt 5"]
    (tmp_path / "stat").write_text("\n".join(rows))
    monkeypatch.setattr(threads, "STAT", tmp_path / "stat")
    monkeypatch.setattr(threads, "cores", lambda: [1, 10])
    assert threads.now().idle == (200 + 7 + 1100 + 7) / os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(threads, "STAT", tmp_path / "nowhere")
    assert threads.now().idle is None


@pytest.mark.slow
def test_a_resumed_run_takes_the_threads_of_its_checkpoint(train, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cores", lambda: [0, 1])
    assert train(*DEBUG, "epochs=1").code == 0
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        ended = train(*DEBUG, "epochs=2")
        assert ended.code == 0 and f"threads     {before}, as before" in ended.out
        assert torch.get_num_threads() == before == checkpoint.load(threads.Path("run/last.pt"))["threads"]
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        ended = train(*DEBUG, "epochs=3")
        assert "threads     2, 1 before: last digits can differ" in ended.out and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
