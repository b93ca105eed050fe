"""Two processes on one run folder, and signals to a whole process group, at random moments."""

import functools
import json
import os
import random
import signal
import time

import faults
import image_files
import pytest
from disturbed import TINY, Child, as_if_nothing_had_happened, nothing_half_written, sentence, trained

from aavae.runtime.signals import STOPS
from aavae.weights import checkpoint

pytestmark = [pytest.mark.faults, pytest.mark.slow]
PAIRS, SIGNALS = (1, 1) if faults.SHORT else (4, 10)


def test_of_two_processes_that_start_on_one_folder_one_trains(tmp_path, injected):
    assert trained((*TINY, "hydra.run.dir=whole"), tmp_path)[0] == 0
    draw = random.Random(1)
    for number in range(PAIRS):
        words = (*TINY, f"hydra.run.dir={number}")
        first = Child(words, tmp_path)
        time.sleep(draw.choice([0, draw.uniform(0, 1)]))
        second = Child(words, tmp_path)
        codes, said = zip(first.ended(), second.ended(), strict=True)
        for code, printed in zip(codes, said, strict=True):
            # One that comes when the other has ended prints its results.
            assert code == 0 or (code == 2 and "another process is busy in" in sentence(printed)), printed
        assert 0 in codes
        injected["one trained, one was refused" if 2 in codes else "one after the other"] += 1
        as_if_nothing_had_happened(tmp_path / str(number), tmp_path / "whole")


STREAMED = (*TINY, "dataset=image_folder", "dataset.path=photos", "dataset.image_size=16", "dataset.in_memory=false",
            "dataset.workers=2")  # fmt: skip


def test_signals_to_the_whole_group_at_random_moments(tmp_path, injected):
    draw, run = random.Random(2), tmp_path / "run"
    names = [f"photos/{name}/{i}.png" for name in "ab" for i in range(12)]
    image_files.save(tmp_path, names, height=16, width=16)
    words = [word for word in STREAMED if not word.startswith("dataset.size")]
    words += ["epochs=1000", "trainer.validate_every=2"]
    lock, status = run / ".lock", run / "status.json"
    for number in range(SIGNALS):
        signum = STOPS[number % len(STOPS)]
        child = Child(words, tmp_path)
        # From here on it has begun; before, Python ends as it does by a signal.
        began = child.until(functools.partial(_held_by, lock, child.pid))
        assert began, child.log.read_text()
        if number % 2:
            child.until(functools.partial(_speaks, status, child.pid))
        time.sleep(draw.uniform(0, 1.0))
        for copy in range(draw.choice([1, 1, 3])):
            if signum == signal.SIGINT and copy:  # a second Ctrl-C kills, as it should
                break
            child.send(signum, everyone=True)
        code, said = child.ended()
        assert code == 128 + signum and "Traceback" not in said, (code, said)
        nothing_half_written(run)
        stage = "before the first step"
        if status.exists():
            state = json.loads(status.read_text())
            assert (state["state"], state["reason"]) == ("interrupted", f"stopped by {signum.name}"), state
            stage = "in training" if state["pid"] == child.pid and state["step"] else stage
            assert not state["step"] or checkpoint.find(run).state["step"] == state["step"]
        injected[f"stopped {stage}, saved"] += 1
        assert not _group(child.pid)
    found = checkpoint.find(run)
    words.append(f"trainer.max_steps={(found.state['step'] if found else 0) + 2}")
    code, said = trained(words, tmp_path)
    assert code == 0, said
    assert trained([*words, "hydra.run.dir=whole"], tmp_path)[0] == 0
    as_if_nothing_had_happened(run, tmp_path / "whole", stopped=True)


def _speaks(path, pid: int) -> bool:
    """Whether the process has written the status."""
    return path.exists() and json.loads(path.read_text())["pid"] == pid


def _held_by(path, pid: int) -> bool:
    """Whether a process has a file open."""
    folder = f"/proc/{pid}/fd"
    try:
        return any(os.path.realpath(f"{folder}/{fd}") == str(path) for fd in os.listdir(folder))
    except OSError:
        return False


def _group(pid: int) -> list[int]:
    """The processes of a group that still run, after a moment."""
    patience = time.monotonic() + 20
    while time.monotonic() < patience:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return []
        time.sleep(0.05)
    return [pid]
