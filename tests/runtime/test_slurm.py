"""Which jobs Slurm is asked to queue again, by what `scontrol show job` of Slurm 22.05 says of them; and the tasks of
`srun`, by the variables that it sets."""

import os
import signal

import pytest

from aavae.runtime import slurm
from aavae.training.trainer import Trainer

# Of a job that is preempted and has its grace time; what `scancel` changes in it is its state.
PREEMPTED = """JobId=7 JobName=probe.sh
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   PreemptEligibleTime=2026-11-25T20:34:03 PreemptTime=2026-11-25T20:34:07
   Partition=low AllocNode:Sid=localhost:3021
"""
RUNNING = PREEMPTED.replace(" PreemptTime=2026-11-25T20:34:07", " PreemptTime=None")
CANCELLED = RUNNING.replace("RUNNING", "COMPLETING")
SIGNALLED = PREEMPTED.replace("RUNNING", "SIGNALING")
INTERACTIVE = PREEMPTED.replace("BatchFlag=1", "BatchFlag=0")
NEVER_AGAIN = PREEMPTED.replace("Requeue=1", "Requeue=0")


@pytest.fixture
def shows(tmp_path, monkeypatch):
    """What `scontrol show job` answers; `asked` has what it was asked."""
    (tmp_path / "bin").mkdir()
    script = f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncat {tmp_path}/shown\n'
    (tmp_path / "bin" / "scontrol").write_text(script)
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_PROCID", "RANK", "AAVAE_JOB", "SLURM_STEP_NUM_TASKS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return (tmp_path / "shown").write_text


@pytest.mark.parametrize(
    "shown, signum, again",
    [
        (PREEMPTED, signal.SIGTERM, True),
        (SIGNALLED, signal.SIGTERM, True),
        (RUNNING, signal.SIGUSR1, True),  # --signal=USR1@180
        (RUNNING, signal.SIGUSR2, True),
        (RUNNING, signal.SIGTERM, False),  # kill, timeout: whoever it was, not Slurm
        (CANCELLED, signal.SIGTERM, False),
        (CANCELLED, signal.SIGUSR2, False),
        (INTERACTIVE, signal.SIGTERM, False),
        (NEVER_AGAIN, signal.SIGTERM, False),
        (PREEMPTED, signal.SIGINT, False),
        (PREEMPTED, signal.SIGHUP, False),
        ("", signal.SIGTERM, False),
    ],
)
def test_a_job_that_runs_returns_if_it_was_preempted_or_warned(shows, shown, signum, again):
    shows(shown)
    assert slurm.returns(signum) is again


def test_an_element_of_an_array_is_asked_for_by_its_own_name_and_only_by_its_first_process(shows, monkeypatch):
    assert slurm.job() == "7"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert slurm.job() == "5_2"
    monkeypatch.setenv("RANK", "1")
    assert slurm.job() is None and not slurm.returns(signal.SIGUSR2)


@pytest.mark.parametrize("part_of_a_sweep", [False, True])
def test_a_preempted_run_saves_and_is_queued_again_but_a_job_of_a_sweep_leaves_that_to_the_sweep(
    shows, train, monkeypatch, tmp_path, part_of_a_sweep
):
    shows(PREEMPTED)
    step = Trainer.train_step

    def preempted(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train_step", preempted)
    if part_of_a_sweep:
        from aavae import command

        monkeypatch.setattr(command, "_end_with_parent", lambda: None)
        monkeypatch.setenv("AAVAE_JOB", "1")
    ended = train("trainer=debug", "probe=[]", "hydra.run.dir=run")
    assert ended.code == 128 + signal.SIGTERM and (tmp_path / "run" / "last.pt").exists()
    asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
    assert ("requeue 7" in asked) is not part_of_a_sweep
    assert ("queues job 7 again" in ended.err) is not part_of_a_sweep


# ---- Tasks of srun ------------------------------------------------------------------------------------------------

TASK = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
JOINED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE")


@pytest.fixture
def task(shows, monkeypatch):
    """The environment of the last of four tasks; gives what is set to describe them, and a way to change the step."""
    # `show hostnames` and `show node` are both answered by the first word.
    shows("node3\nnode4 NodeAddr=10.0.0.3\n")
    for name in JOINED:
        monkeypatch.setenv(name, "")  # so that it is taken back afterwards
        monkeypatch.delenv(name)

    def described(**changes: str) -> dict[str, str]:
        for name in JOINED:
            os.environ.pop(name, None)
        for name, value in (TASK | changes).items():
            monkeypatch.setenv(name, value)
        slurm.describe_tasks()
        return {name: os.environ[name] for name in JOINED if name in os.environ}

    return described


def test_tasks_of_srun_find_each_other_at_the_first_node_and_a_port_of_their_step(task):
    last, first = task(), task(SLURM_PROCID="0", SLURM_LOCALID="0")
    assert (last["RANK"], last["WORLD_SIZE"], last["LOCAL_RANK"]) == ("3", "4", "1")
    assert (first["RANK"], first["LOCAL_RANK"]) == ("0", "0")
    assert last["MASTER_ADDR"] == first["MASTER_ADDR"] == "10.0.0.3"  # which Slurm uses, for a name may be its own
    ports = [task(**change)["MASTER_PORT"] for change in ({}, {"SLURM_STEP_ID": "1"}, {"SLURM_RESTART_COUNT": "1"})]
    assert ports[0] == last["MASTER_PORT"] == first["MASTER_PORT"] and len(set(ports)) == 3
    assert all(int(port) in slurm.PORTS for port in ports)
    assert task(SLURM_STEP_NUM_NODES="1")["MASTER_ADDR"] == "127.0.0.1"
    assert slurm.joined() and slurm.words() == ["srun", "--ntasks=4"]


@pytest.mark.parametrize(
    "alone",
    [
        {"SLURM_STEP_NUM_TASKS": "1"},  # one, as of submitit's
        {"WANDB_SWEEP_ID": "s"},  # an agent of W&B's in each task
        {"WORLD_SIZE": "1"},  # each task a run of its own
        {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},  # torchrun within a task
    ],
)
def test_a_task_that_is_alone_or_has_torchrun_is_left_alone(task, monkeypatch, alone):
    for name in JOINED:
        monkeypatch.delenv(name, raising=False)
    for name, value in (TASK | alone).items():
        monkeypatch.setenv(name, value)
    slurm.describe_tasks()
    assert "MASTER_PORT" not in os.environ and not slurm.joined()


def test_a_sweep_is_not_launched_by_each_task(task, train, monkeypatch, tmp_path):
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    ended = train("-m", "trainer=debug", "seed=0,1")
    assert ended.code == 2 and "a sweep is launched once, and not by each of 4 tasks; use srun --ntasks=1" in ended.err
    assert not any(path.name == "multirun" for path in tmp_path.iterdir())
