"""SIGKILL, at random moments and at every operation on files: the same command ends as if nothing had happened."""

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import faults
import pytest
from disturbed import TINY, Child, as_if_nothing_had_happened, at_operation, nothing_half_written, trained

from aavae.weights import checkpoint

pytestmark = [pytest.mark.faults, pytest.mark.slow]
KILLS = 3 if faults.SHORT else 20
ENDLESS = (*TINY, "epochs=100000")


def stage(run: Path, pid: int) -> str:
    """Where the process was when it was killed, by what it has left."""
    if list(run.glob(f".*.{pid}.tmp")):
        return "in the middle of a write"
    said = json.loads((run / "status.json").read_text()) if (run / "status.json").exists() else {}
    return "in training" if said.get("pid") == pid else "while it started"


def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_bits(tmp_path, injected):
    draw, run, last = random.Random(0), tmp_path / "run", tmp_path / "run" / checkpoint.LAST
    begun, start = time.monotonic(), 0.0
    for number in range(KILLS):
        child = Child(ENDLESS, tmp_path)
        if number % 2 and start:  # anywhere until the first checkpoint of this session
            time.sleep(draw.uniform(0, 1.2 * start))
        else:  # in training, or while it saves
            saves = draw.randint(1, 4)
            for _ in range(saves):
                before = last.stat().st_ino if last.exists() else None
                child.until(lambda before=before: last.exists() and last.stat().st_ino != before)
            start = start or time.monotonic() - begun
            time.sleep(draw.uniform(0, 0.05))
        assert child.code is None, child.log.read_text()
        child.send(signal.SIGKILL)
        assert child.ended()[0] == -signal.SIGKILL
        injected[stage(run, child.pid)] += 1
        nothing_half_written(run)
    step = checkpoint.find(run).state["step"]
    words = (*ENDLESS, f"trainer.max_steps={step + 2}")
    code, said = trained(words, tmp_path)
    assert code == 0 and f"from step {step:,}" in said, said
    assert trained((*words, "hydra.run.dir=whole"), tmp_path)[0] == 0
    as_if_nothing_had_happened(run, tmp_path / "whole")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbs, and the operations on files that it does."""
    folder = tmp_path_factory.mktemp("whole")
    code, said = trained((*TINY, "hydra.run.dir=run"), folder, (at_operation, None, "", str(folder / "notes")))
    assert code == 0, said
    return folder / "run", (folder / "notes").read_text().splitlines()


def points(names: list[str], most: int) -> list[int]:
    """Numbers of operations: the first and the last of each name, or some of those, `most` in the short form."""
    seen = Counter(names)
    first = {name: names.index(name) for name in seen}
    last = {name: len(names) - 1 - names[::-1].index(name) for name in seen}
    every = sorted({*first.values(), *last.values()})
    most = most if faults.SHORT else faults.EXAMPLES // 100  # with FAULTS=12000 all
    return sorted(random.Random(0).sample(every, min(most, len(every))))


def test_a_run_that_is_killed_at_an_operation_on_files_ends_with_the_same_bits(whole, tmp_path, injected):
    undisturbed, names = whole
    assert "rename last.pt" in names and "rename previous.pt" in names and "write 1 metrics.jsonl" in names
    for point in points(names, 2):
        folder = tmp_path / str(point)
        folder.mkdir()
        code, said = trained(TINY, folder, (at_operation, point))
        assert code == -signal.SIGKILL, (names[point], said)
        nothing_half_written(folder / "run")
        code, said = trained(TINY, folder)
        assert code == 0, (names[point], said)
        as_if_nothing_had_happened(folder / "run", undisturbed)
        injected["killed in a save" if names[point].endswith(".pt") else "killed in another write"] += 1


def test_a_disk_that_is_full_from_an_operation_on_is_said_and_the_run_goes_on(whole, train, monkeypatch, injected):
    undisturbed, names = whole
    for point in points(names, 3):
        with monkeypatch.context() as patch:
            at_operation(point, "full", patch=patch.setattr)
            ended = train(*TINY, f"hydra.run.dir={point}")
        assert ended.code == 2, (names[point], ended)
        assert ended.err.count("\n") == 1 and "No space left on device" in ended.err, (names[point], ended.err)
        nothing_half_written(Path(str(point)))
        ended = train(*TINY, f"hydra.run.dir={point}")
        assert ended.code == 0, (names[point], ended.err)
        as_if_nothing_had_happened(Path(str(point)), undisturbed)
        injected["the run went on"] += 1
