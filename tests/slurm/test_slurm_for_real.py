"""Runs and sweeps on the Slurm that `tests/slurm/start` starts: what is stopped continues at its step."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aavae.weights import checkpoint

ROOT = Path(__file__).resolve().parents[2]


def told(*command: str, **more) -> str:
    """What a command prints; it must go well."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, **more)
    assert ended.returncode == 0, f"{command}: {ended.stderr}"
    return ended.stdout


def runs_here() -> bool:
    """Whether the Slurm of these tests answers."""
    try:
        said = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    return "aavae-tests" in said.stdout


pytestmark = pytest.mark.skipif(
    not runs_here(), reason="the Slurm of tests/slurm is not running here; tests/slurm/start installs and starts it"
)
PATIENCE = 240.0  # seconds; a loaded machine takes twenty to begin a run
STEPS, HELD = 32, 10
WORDS = ("trainer=debug", "probe=[]", "epochs=4", "trainer.validate_every=0", "trainer.log_every=1")
STOPPED = HELD + 1  # the step after that at which the first session waits for its signal
HOLD = ("+logger.hold._target_=holding.Hold", f"+logger.hold.step={HELD}")
TRAIN = (sys.executable, "-m", "aavae.train", *WORDS, "logger=wandb")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """What jobs inherit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    subprocess.run(["scancel", f"--name={tmp_path.name}"], timeout=60)  # what a test that failed has left


def submit(tmp_path: Path, line: str, *options: str) -> str:
    """Submit a script of one line; the id of its job."""
    script = f"#!/bin/bash\n{line}\n"
    return told(
        "sbatch", "--parsable", f"--job-name={tmp_path.name}", "--open-mode=append", *options, input=script
    ).strip()


def facts(job: str) -> dict[str, str]:
    """What Slurm says of a job."""
    return dict(word.split("=", 1) for word in told("scontrol", "show", "job", job).split() if "=" in word)


def until(holds: Callable[[], Any], what: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come: {told('squeue')}"
        time.sleep(0.2)


def ended(job: str, state: str = "COMPLETED") -> None:
    until(lambda: facts(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), f"the end of job {job}")
    assert facts(job)["JobState"] == state


def said(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


def check_unbroken(folder: Path, reference: Path) -> None:
    """Each step once and in order, weights of a run that nothing stopped, all sessions in one run of W&B."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, STEPS + 1))
    assert said(folder)["state"] == "done"
    weights = [checkpoint.load(run / checkpoint.LAST)["model"] for run in (folder, reference)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    begun = [path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*")]
    assert len(begun) > 1 and len(set(begun)) == 1


def test_slurm_answers():
    # Not slow, so that `make test` says where it does not.
    assert len({*told("sinfo", "--noheader", "--Node", "--format=%N").split()}) == 4


@pytest.mark.slow
def test_a_script_that_is_requeued_or_preempted_continues_and_one_that_is_cancelled_says_so(train, tmp_path):
    where = {
        "requeued": ("--partition=work", "--nodelist=one"),
        "cancelled": ("--partition=work", "--nodelist=one"),
        "preempted": ("--partition=cheap", "--nodelist=two"),
    }
    jobs = {
        name: submit(
            tmp_path,
            f"#SBATCH --signal=B:USR1@180 --requeue\nexec {' '.join([*TRAIN, *HOLD])} hydra.run.dir={name}",
            f"--output={name}.txt",
            *options,
        )
        for name, options in where.items()
    }
    assert train(*WORDS, "hydra.run.dir=whole").code == 0
    until(lambda: all(Path(name, "held").exists() for name in jobs), "the step that is held")
    told("scontrol", "requeue", jobs["requeued"])
    told("scancel", jobs["cancelled"])
    submit(tmp_path, "sleep 1", "--partition=urgent", "--nodelist=two", "--exclusive", "--output=/dev/null")

    ended(jobs["cancelled"], "CANCELLED")
    found = said(Path("cancelled"))
    assert (found["state"], found["reason"], found["saved"]) == ("interrupted", "stopped by SIGTERM", STOPPED)
    assert f"stopped at step {STOPPED}; continue with" in Path("cancelled.txt").read_text()
    assert train(*WORDS, "logger=wandb", "hydra.run.dir=cancelled").code == 0
    check_unbroken(Path("cancelled"), Path("whole"))

    for name in ("requeued", "preempted"):
        ended(jobs[name])
        assert facts(jobs[name])["Restarts"] == "1"
        log = Path(f"{name}.txt").read_text()
        assert f"from step {STOPPED}" in log and "failed" not in log
        check_unbroken(Path(name), Path("whole"))


@pytest.mark.slow
def test_a_sweep_waits_for_a_preempted_job_and_takes_up_a_cancelled_one_when_launched_again(train, tmp_path):
    settings = ("partition=cheap", "gpus_per_node=null", "cpus_per_task=1", f"name={tmp_path.name}")
    launcher = ["hydra/launcher=slurm", *(f"hydra.launcher.{setting}" for setting in settings)]
    launcher.append("+hydra.launcher.additional_parameters.nodelist=three")
    command = [*TRAIN, *HOLD, "-m", "method=ae,aavae", "sweep.name=s", *launcher]
    folder = Path("multirun/s")
    with open("first.txt", "w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
    for method in ("ae", "aavae"):
        assert train(*WORDS, f"method={method}", f"hydra.run.dir={method}").code == 0
    until(lambda: len([*folder.glob("*/held")]) == 2 or first.poll() is not None, "the step that is held")
    assert first.poll() is None, Path("first.txt").read_text()
    runs = {}
    for config in folder.glob("*/config.yaml"):
        runs[re.search("^method: (.*)$", config.read_text(), re.MULTILINE)[1]] = config.parent
    (array,) = {line.split("_")[0] for line in told("squeue", "-hr", "-o%i", f"--name={tmp_path.name}").split()}

    told("scancel", f"{array}_1")
    until(lambda: said(runs["aavae"])["state"] != "running", "the end of the job")
    assert said(runs["aavae"])["state"] == "interrupted" and said(runs["aavae"])["saved"] == STOPPED
    submit(tmp_path, "sleep 1", "--partition=urgent", "--nodelist=three", "--exclusive", "--output=/dev/null")
    assert first.wait(PATIENCE) == 1
    log = Path("first.txt").read_text()
    assert "2 jobs, 1 done, 1 interrupted" in log and "sacct" not in log
    check_unbroken(runs["ae"], Path("ae"))

    again = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 0, again.stderr
    assert "2 jobs, 1 of them done" in again.stdout and "2 jobs, 2 done" in again.stdout
    check_unbroken(runs["aavae"], Path("aavae"))


@pytest.mark.slow
def test_two_tasks_of_srun_are_one_run_which_continues_after_its_time_limit(tmp_path):
    two = ("--nodes=2", "--ntasks=2", "--partition=work")
    # Slurm looks every thirty seconds, and sends the signal that much earlier: half a minute or more after the start.
    limit = ("--time=1", "--signal=USR1@1", "--requeue", "--output=limited.txt")
    limited = submit(tmp_path, f"srun {' '.join([*TRAIN, *HOLD])} hydra.run.dir=limited", *two, *limit)
    until(lambda: Path("limited/held").exists() or facts(limited)["Restarts"] != "0", "the step that is held")
    whole = submit(tmp_path, f"srun {' '.join(TRAIN)} hydra.run.dir=whole", *two, "--output=whole.txt")
    ended(whole)
    found = said(Path("whole"))
    assert found["devices"] == 2 and found["command"].startswith("srun --nodes=2 --ntasks=2 ")
    assert "2 processes" in Path("whole.txt").read_text()
    ended(limited)
    log, stops = Path("limited.txt").read_text(), int(facts(limited)["Restarts"])
    assert stops >= 1  # more often where other processes leave it no time
    assert log.count(f"Slurm queues job {limited} again") == stops and ", from step" in log
    check_unbroken(Path("limited"), Path("whole"))
