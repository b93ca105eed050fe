"""Slurm: a job that was asked to stop, has saved, and goes back into the queue; and the tasks that train together."""

import hashlib
import os
import shutil
import signal
import subprocess

# Slurm sends none of these unless asked to, by --signal or `scancel --signal`. SIGTERM has many senders; see `returns`.
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
RUNS = ("RUNNING", "SIGNALING")  # for a second or two after Slurm has sent a signal it shows the latter
PORTS = range(20000, 32000)  # below those that Linux gives to connections that go out


def job() -> str | None:
    """The id of the batch job that this process is the first of, in Slurm's words; None outside of one."""
    env = os.environ
    if "SLURM_JOB_ID" not in env or not shutil.which("scontrol"):
        return None
    if any(env.get(rank, "0") != "0" for rank in ("SLURM_PROCID", "RANK")):
        return None
    if "SLURM_ARRAY_TASK_ID" in env:  # the plain id of one of them stands for the whole array
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env["SLURM_JOB_ID"]


def returns(signum: int) -> bool:
    """Whether a job that was sent `signum` should be queued again once it has saved.

    It should if it was warned (SIGUSR1, SIGUSR2), or sent SIGTERM because it is preempted; if it runs still, which it
    does not after `scancel` or when its time is up; and if it is a batch job that may be requeued (`--no-requeue`).
    """
    if (this := job()) is None or signum not in (*WARNINGS, signal.SIGTERM):
        return False
    said = _ask("show", "job", this) or ""
    facts = dict(word.split("=", 1) for word in said.split() if "=" in word)
    preempted = facts.get("PreemptTime", "None") not in ("None", "Unknown")
    may = facts.get("JobState") in RUNS and facts.get("BatchFlag") == facts.get("Requeue") == "1"
    return may and (signum in WARNINGS or preempted)


def requeue() -> str | None:
    """Put the job back into the queue, which ends it here; its id, None where Slurm refuses."""
    this = job()
    return this if this and _ask("requeue", this) is not None else None


def tasks() -> int:
    """How many tasks `srun` has started together, this process in one of them; 1 outside of one."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def first() -> bool:
    """Whether none of the tasks that train together comes before this one."""
    return not together() or os.environ.get("SLURM_PROCID", "0") == "0"


def together() -> bool:
    """Whether this process is one of several tasks of `srun`, and nothing else says with whom it trains: torchrun does,
    and an agent of W&B's in each task gives each a run of its own."""
    return tasks() > 1 and not {"WORLD_SIZE", "WANDB_SWEEP_ID"} & {*os.environ}


def joined() -> bool:
    """Whether `describe_tasks` has set the variables."""
    return tasks() > 1 and os.environ.get("WORLD_SIZE") == str(tasks()) and "LOCAL_WORLD_SIZE" not in os.environ


def words() -> list[str]:
    """How to start as many tasks as train together here, on as many nodes."""
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    return ["srun", *([f"--nodes={nodes}"] if nodes > 1 else []), f"--ntasks={tasks()}"]


def describe_tasks() -> None:
    """Set the variables with which torch finds the other tasks of the same `srun`, if they train together.

    MASTER_ADDR and MASTER_PORT are kept where they are set, and so is WORLD_SIZE=1, with which each task is alone.
    """
    env = os.environ
    if not together():
        return
    # Tasks that cannot talk before they know a port must all come upon the same one, another one in each step.
    step = "/".join(env.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))
    number = int.from_bytes(hashlib.sha256(step.encode()).digest()[:4], "big")
    env.setdefault("MASTER_ADDR", _address(env["SLURM_STEP_NODELIST"]))
    env.setdefault("MASTER_PORT", str(PORTS[number % len(PORTS)]))
    env |= {"RANK": env["SLURM_PROCID"], "WORLD_SIZE": str(tasks()), "LOCAL_RANK": env["SLURM_LOCALID"]}


def _address(nodes: str) -> str:
    """The address of the first of `nodes`, in Slurm's notation: the one that Slurm itself uses, or else its name."""
    if os.environ.get("SLURM_STEP_NUM_NODES", "1") == "1":
        return "127.0.0.1"
    first = (_ask("show", "hostnames", nodes) or nodes).split()[0]
    said = (_ask("show", "node", first) or "").split()
    return next((word.removeprefix("NodeAddr=") for word in said if word.startswith("NodeAddr=")), first)


def _ask(*words: str) -> str | None:
    try:
        return subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
