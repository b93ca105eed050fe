"""Successive halving: one folder, launched for several lengths, in any order."""

import json
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
RATES, BETTER = "optimizer.lr=0.1,0.01,0.001", "optimizer.lr=0.01,0.001"


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
    assert [said["step"] for said in after.values()] == [steps[first := "optimizer.lr=0.1"], *[2 * steps[first]] * 2]
    how = f"hydra/launcher={launcher}"
    for again in (lambda: sweep("epochs=1", RATES, how), lambda: train("sweep.resume=multirun/halving", how)):
        ended = again()
        assert ended.code == 0, ended.out + ended.err
        assert jobs() == after
        assert "3 jobs, 3 of them done" in ended.out


def test_a_run_that_stands_further_and_is_not_done_is_left_to_the_longer_launch(sweep, train):
    assert sweep("epochs=1", RATES).code == 0 and sweep("epochs=2", RATES).code == 0
    names = list(jobs())
    folder = Path("multirun/halving", sweeps.read(Path("multirun/halving"))["jobs"][0]["folder"])
    status.write(folder, "interrupted", "stopped by SIGINT")
    (folder / "encoder.safetensors").unlink()
    ended = sweep("epochs=1", RATES)
    assert jobs()[names[0]]["state"] == "interrupted" and "past the" not in ended.out + ended.err
    assert train("sweep.resume=multirun/halving").code == 0
    assert [said["state"] for said in jobs().values()] == ["done", "done", "done"]


def test_another_length_of_a_decaying_schedule_is_refused_before_anything_is_begun(sweep):
    settings = ("schedule=cosine", RATES)
    assert sweep("epochs=1", *settings).code == 0
    before = jobs()
    for epochs in (2, 3):
        ended = sweep(f"epochs={epochs}", *settings)
        assert ended.code == 2 and "3 of 3 jobs are impossible" in ended.err
        assert "was trained towards epochs=1 with a cosine schedule" in ended.err
        assert jobs() == before
    assert len(json.loads(Path("multirun/halving/sweep.json").read_text())["launches"]) == 1


def test_a_job_that_is_refused_leaves_its_finished_run_done_and_is_told(sweep, monkeypatch):
    settings = ("schedule=cosine", RATES)
    assert sweep("epochs=1", *settings).code == 0
    for job in sweeps.read(Path("multirun/halving"))["jobs"]:
        status.write(Path("multirun/halving", job["folder"]), "done", step=None)  # only the job itself can know
    before = jobs()
    ended = sweep("epochs=2", *settings)
    assert ended.code == 1
    assert jobs() == before
    for name in before:
        assert f"aavae-train: {name}: " in ended.err and "its run of before is kept" in ended.err
