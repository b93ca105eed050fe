"""A clock that jumps hours forth and back: nothing that a run does depends on it."""

import json
import random
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import faults
import pytest
from disturbed import TINY, Child, as_if_nothing_had_happened, trained

from aavae.runs import status

pytestmark = pytest.mark.faults


def jumping(seed: int, patch=setattr) -> None:
    """A hook: each look at the clock finds it up to a day off, forth or back."""
    import datetime as module
    import time

    draw, now, nanoseconds, real = random.Random(seed), time.time, time.time_ns, module.datetime

    def off() -> float:
        return draw.uniform(-86400, 86400)

    class Jumping(real):
        @classmethod
        def now(cls, tz=None):
            return real.now(tz) + timedelta(seconds=off())

    patch(time, "time", lambda: now() + off())
    patch(time, "time_ns", lambda: nanoseconds() + int(1e9 * off()))
    patch(module, "datetime", Jumping)
    for name in ("aavae.runs.status", "aavae.runs.provenance", "aavae.reports.shelf"):
        patch(__import__(name, fromlist=["datetime"]), "datetime", Jumping)


@pytest.mark.slow
def test_a_run_whose_clock_jumps_ends_as_any_and_goes_on(tmp_path, injected):
    whole = (*TINY, "hydra.run.dir=whole")
    assert trained(whole, tmp_path)[0] == 0
    for seed in range(1 if faults.SHORT else 5):
        words = (*TINY, f"hydra.run.dir={seed}", "trainer.save_minutes=0.0001")
        if seed % 2 or faults.SHORT:  # in two sessions
            code, said = trained((*words, "trainer.max_steps=6"), tmp_path, (jumping, seed))
            assert code == 0, said
        code, said = trained(words, tmp_path, (jumping, 100 + seed))
        assert code == 0 and "Traceback" not in said, said
        as_if_nothing_had_happened(tmp_path / str(seed), tmp_path / "whole")
        state = json.loads((tmp_path / str(seed) / "status.json").read_text())
        assert 0 < state["seconds"] < 600
        rows = [json.loads(line) for line in (tmp_path / str(seed) / "metrics.jsonl").read_text().splitlines()]
        assert all(row["images_per_second"] > 0 for row in rows if "images_per_second" in row)
        assert not any("-" in line.split("images/s")[1] for line in said.splitlines() if "images/s" in line)
        injected["ended as any"] += 1


def said_running(folder: Path, hours: float) -> dict:
    """What a run says that this process does, on a clock that was so many hours ahead."""
    heart = status.Heart(folder, dict)
    heart.say("running")
    said = status.read(folder)
    return said | {"updated": (datetime.now().astimezone() + timedelta(hours=hours)).isoformat(timespec="seconds")}


@pytest.mark.parametrize("hours", [-5, 0, 5])
def test_a_run_on_this_machine_is_alive_as_long_as_its_process_whatever_the_clock_says(tmp_path, hours, injected):
    said = said_running(tmp_path, hours)
    assert status.state_of(said) == "running"
    another = subprocess.Popen([sys.executable, "-c", ""])
    assert status.state_of(said | {"pid": another.pid}) == "dead"  # that is none of ours
    another.wait()
    assert status.state_of(said | {"pid": another.pid}) == "dead"
    again = said["process"].rpartition(" ")[0] + " 1"
    assert status.state_of(said | {"process": again}) == "dead"  # its number was given to another
    elsewhere = said | {"process": "another-boot pid:[1] 1"}
    assert status.state_of(elsewhere) == ("dead" if hours < 0 else "running")
    injected["alive or dead as it was"] += 5


@pytest.mark.slow
def test_a_run_that_is_killed_is_dead_at_once(tmp_path, injected):
    child = Child((*TINY, "epochs=100000"), tmp_path)
    saw = tmp_path / "run" / "status.json"
    assert child.until(saw.exists)
    assert status.state_of(status.read(saw.parent)) == "running"
    child.send(9)
    child.ended()
    assert status.state_of(status.read(saw.parent)) == "dead"
    injected["alive or dead as it was"] += 2


def test_tensorboard_reads_what_was_logged_last_where_the_clock_was_set_back(tmp_path, monkeypatch, injected):
    pytest.importorskip("tensorboard")
    from aavae.loggers import event_file

    for number, now in enumerate((1e9, 9e8, 9e8)):
        monkeypatch.setattr(event_file.time, "time", lambda now=now: now)
        file = event_file.EventFile(tmp_path, forget_after=number or None)
        file.scalar("loss", number, number + 1)
        file.close()
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        assert newest == sorted(tmp_path.iterdir())[-1]
        injected["in the order of writing"] += 1
    assert len(list(tmp_path.iterdir())) == 3
