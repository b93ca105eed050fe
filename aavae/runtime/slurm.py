"""A job of Slurm's that was asked to stop, has saved, and goes back into the queue."""

import os
import shutil
import signal
import subprocess

# Slurm sends none of these unless asked to, by --signal or `scancel --signal`. SIGTERM has many senders; see `returns`.
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)


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
    may = facts.get("JobState") == "RUNNING" and facts.get("BatchFlag") == facts.get("Requeue") == "1"
    return may and (signum in WARNINGS or preempted)


def requeue() -> str | None:
    """Put the job back into the queue, which ends it here; its id, None where Slurm refuses."""
    this = job()
    return this if this and _ask("requeue", this) is not None else None


def _ask(*words: str) -> str | None:
    try:
        return subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
