"""Successive halving: one folder, launched for several lengths, in any order."""

import json
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from aavae.runs import status
from aavae.runs import sweep as sweeps

SMALL = (
    "trainer=debug",
    "trainer.max_steps=null",
    "trainer.validate_every=0",
    "probe=[]",
    "sweep.name=halving",
    "seed=0",
)
RATES, BETTER = "optimizer.lr=0.1,0.01", "optimizer.lr=0.01"


@pytest.fixture
def sweep(quick_jobs, train):
    """`aavae-train -m` with small jobs."""
    return lambda *arguments: train("-m", *SMALL, *arguments)


def jobs() -> dict[str, dict]:
    """How the jobs stand, by name."""
    known = sweeps.read(Path("multirun/halving"))["jobs"]
    return {job["name"]: status.read(Path("multirun/halving", job["folder"])) for job in known}


@pytest.mark.parametrize("launcher", ["processes", pytest.param("basic", marks=pytest.mark.slow)])
def test_a_shorter_launch_leaves_alone_what_was_trained_further(sweep, train, launcher):
    assert sweep("epochs=1", RATES).code == 0
    steps = {name: said["step"] for name, said in jobs().items()}
    assert sweep("epochs=2", BETTER).code == 0
    after = jobs()
    assert {name: said["step"] for name, said in after.items()} == steps | {BETTER: 2 * steps[BETTER]}
    how = f"hydra/launcher={launcher}"
    for again in (lambda: sweep("epochs=1", RATES, how), lambda: train("sweep.resume=multirun/halving", how)):
        ended = again()
        assert ended.code == 0, ended.out + ended.err
        assert jobs() == after
        assert "2 jobs, 2 of them done" in ended.out


@pytest.mark.slow
def test_a_run_that_stands_further_and_is_not_done_is_left_to_the_longer_launch(sweep, train):
    assert sweep("epochs=1", RATES).code == 0 and sweep("epochs=2", RATES).code == 0
    names = list(jobs())
    folder = Path("multirun/halving", sweeps.read(Path("multirun/halving"))["jobs"][0]["folder"])
    status.write(folder, "interrupted", "stopped by SIGINT")
    (folder / "encoder.safetensors").unlink()
    ended = sweep("epochs=1", RATES)
    assert jobs()[names[0]]["state"] == "interrupted" and "past the" not in ended.out + ended.err
    assert ended.code == 1 and f"{names[0]}: its run has more steps than this launch asks for" in ended.err
    assert "2 jobs, 1 of them done, 1 of them trained further than this" in ended.out
    assert train("sweep.resume=multirun/halving").code == 0
    assert [said["state"] for said in jobs().values()] == ["done", "done"]


def test_another_length_of_a_decaying_schedule_is_refused_before_anything_is_begun(sweep):
    settings = ("schedule=cosine", RATES)
    assert sweep("epochs=1", *settings).code == 0
    before = jobs()
    for epochs in (2, 3):
        ended = sweep(f"epochs={epochs}", *settings)
        assert ended.code == 2 and "2 of 2 jobs are impossible" in ended.err
        assert "was trained towards epochs=1 with a cosine schedule" in ended.err
        assert jobs() == before
    assert len(json.loads(Path("multirun/halving/sweep.json").read_text())["launches"]) == 1


def test_a_damaged_status_lets_no_other_length_begin(sweep):
    settings = ("schedule=cosine", RATES)
    assert sweep("epochs=1", *settings).code == 0
    folders = [Path("multirun/halving", job["folder"]) for job in sweeps.read(Path("multirun/halving"))["jobs"]]
    (folders[0] / "status.json").write_text('{"state"')
    ended = sweep("epochs=2", *settings)
    assert ended.code == 2 and "2 of 2 jobs are impossible" in ended.err
    assert (folders[0] / "status.json").read_text() == '{"state"'


@pytest.mark.parametrize("launcher", ["processes", pytest.param("basic", marks=pytest.mark.slow)])
def test_a_job_that_is_refused_leaves_its_finished_run_done_and_is_told(sweep, launcher):
    assert sweep("epochs=1", RATES).code == 0
    before = jobs()
    for job in sweeps.read(Path("multirun/halving"))["jobs"]:
        Path("multirun/halving", job["folder"], "last.pt").unlink()
    ended = sweep("epochs=2", RATES, f"hydra/launcher={launcher}")
    assert ended.code == 1
    assert jobs() == before
    for name in before:
        (line,) = [line for line in ended.err.splitlines() if line.startswith(f"aavae-train: {name}: ")]
        assert "had a checkpoint of step 8, which is gone" in line and "its run of before is kept" in line
        assert line.count("aavae-train") == 1


# ---- Beginning anew -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_to_begin_anew_does_so_when_it_is_gone_on_with(sweep, train):
    assert sweep("epochs=1", RATES).code == 0
    record = Path("multirun/halving/sweep.json")
    folders = [record.parent / job["folder"] for job in sweeps.read(record.parent)["jobs"]]
    # As `resume=never` leaves it, stopped after the first job.
    later = datetime.now().astimezone() + timedelta(seconds=3)
    known = sweeps.read(record.parent)
    known["launches"][0]["afresh"] = later.isoformat(timespec="seconds")
    record.write_text(json.dumps(known))
    status.write(folders[0], "done", started=(later + timedelta(seconds=1)).isoformat(timespec="seconds"))
    before = [status.read(folder) for folder in folders]
    while datetime.now().astimezone() < later:
        time.sleep(0.1)
    ended = train("sweep.resume=multirun/halving")
    assert ended.code == 0 and "2 jobs, 1 of them done" in ended.out
    after = [status.read(folder) for folder in folders]
    assert after[0] == before[0] and all(
        x["started"] > y["started"] for x, y in zip(after[1:], before[1:], strict=True)
    )
    assert [len(json.loads((folder / "provenance.json").read_text())) for folder in folders] == [1, 1]
    assert "2 jobs, 2 of them done" in train("sweep.resume=multirun/halving").out


@pytest.mark.slow
def test_resume_never_begins_all_anew_and_remembers_it(sweep):
    assert sweep("epochs=1", "schedule=cosine", RATES).code == 0
    before = jobs()
    assert sweep("epochs=2", "schedule=cosine", RATES, "resume=never").code == 0
    after = jobs()
    assert [said["step"] for said in after.values()] == [2 * said["step"] for said in before.values()]
    launch = sweeps.read(Path("multirun/halving"))["launches"][-1]
    assert all(launch["afresh"] <= said["started"] for said in after.values())
    assert "2 jobs, 2 of them done" in sweep("epochs=2", "schedule=cosine", RATES).out
