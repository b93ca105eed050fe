"""How jobs stand on a Slurm without accounting: submitit's launcher asks `sacct` alone."""

import subprocess
import time

FORGOTTEN = "Invalid job id"  # what squeue says of a job that ended some minutes ago
ENDS = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
# submitit waits for one that is PREEMPTED, as if it were queued again; but then squeue would say PENDING.
ENDED = {state: state for state in ENDS} | {"PREEMPTED": "CANCELLED"}
DELAY = 30  # seconds between two questions, at most


def watch() -> None:
    """Have submitit ask `squeue` if `sacct` knows nothing; it would wait forever for a job that was cancelled.

    Raises ModuleNotFoundError without submitit.
    """
    if _said("sacct", "--noheader", "--jobs=0")[0]:
        return
    from submitit.slurm import slurm

    class Watcher(slurm.SlurmInfoWatcher):
        """Knows of each registered job what the queue shows."""

        def update(self) -> None:
            """Ask for all jobs that had not ended before."""
            asked = self._registered - self._finished
            self._info_dict |= {job: {"JobID": job, "State": state} for job, state in states(asked).items()}
            self._last_status_check = time.time()
            self._finished |= {job for job in asked if self.is_done(job, mode="cache")}

    slurm.SlurmJob.watcher = Watcher(delay_s=DELAY)


def states(jobs: set[str]) -> dict[str, str]:
    """The state of each of `jobs` (`7`, or `5_2` in an array): RUNNING before it ends, COMPLETED or how else it ended;
    nothing where Slurm does not answer."""
    if not jobs:
        return {}
    ids = ",".join(sorted({job.partition("_")[0] for job in jobs}))
    fine, said = _said("squeue", "--states=all", "--array", "--noheader", "--format=%i|%T", f"--jobs={ids}")
    if not fine and FORGOTTEN not in said:
        return {}
    shown = dict(line.split("|", 1) for line in said.splitlines() if "|" in line)
    return {job: ENDED.get(shown.get(job, "COMPLETED"), "RUNNING") for job in jobs}


def _said(*words: str) -> tuple[bool, str]:
    """Whether a command went well, and what it printed."""
    try:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False, ""
    return ended.returncode == 0, ended.stdout + ended.stderr
