"""Jobs as processes of their own, some at a time: what one of them does to itself harms no other."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from aavae.errors import UserError
from aavae.runs import status
from aavae.runs.sweep import Job
from aavae.runtime import files, signals, slurm

LOG = "log.txt"
TICK = 0.5  # seconds between looks at the processes
GRACE = 120.0  # seconds that a stopped job has to save what it has
TAIL = 2**16  # bytes of a log in which its last words are looked for


class Outcome(NamedTuple):
    """How a job ended: a state of status.json, its score, and the reason where it did not end well."""

    state: str
    score: float | None = None
    reason: str | None = None


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen
    slot: dict[str, str]
    logged: int  # bytes in its log before it began
    finished: dict | None  # what it said, if it was done before


class Pool:
    """Runs jobs with `command(job)`, one in each of `slots` (variables of its environment) at a time.

    Each writes to `log.txt` in its folder and is stopped by SIGTERM, when this process is. `watch` is told every now
    and then how all of them stand, and may draw it.
    """

    def __init__(
        self,
        command: Callable[[Job], list[str]],
        slots: list[dict[str, str]],
        watch: Callable[[dict[int, str]], None],
    ):
        self.command, self.free, self.watch = command, list(slots), watch
        self.running: list[_Running] = []
        self.stopped: int | None = None  # the signal
        self._deadline = float("inf")

    def run(self, jobs: list[Job]) -> dict[int, Outcome]:
        """Run the jobs and return how each ended, by its number; raises nothing for what a job does.

        After a signal (of `signals.STOPS`) no job is begun, those that run are asked to stop, and `stopped` is set; a
        second Ctrl-C kills them.
        """
        waiting = list(jobs)
        outcomes: dict[int, Outcome] = {}
        with signals.listening() as heard, heard.answered_by(self._stop):
            self.stopped = heard.received
            try:
                while self.running or (waiting and self.stopped is None):
                    while waiting and self.free and self.stopped is None:
                        self._begin(waiting.pop(0), outcomes)
                    self._wait(outcomes)
                    running = {r.job.number: "running" for r in self.running}
                    self.watch(running | {n: o.state for n, o in outcomes.items()})
            finally:
                self._send(signal.SIGTERM)  # if something went wrong here; otherwise nobody is left
                self._deadline = min(self._deadline, time.monotonic() + GRACE)
                while self.running:
                    self._wait(outcomes)
        return outcomes

    def _wait(self, outcomes: dict[int, Outcome]) -> None:
        for ended in [r for r in self.running if r.process.poll() is not None]:
            if ended.process.stdin:
                ended.process.stdin.close()
            self.running.remove(ended)
            self.free.append(ended.slot)
            outcomes[ended.job.number] = self._outcome(ended)
        if time.monotonic() > self._deadline:
            self._send(signal.SIGKILL)
        time.sleep(TICK if self.running else 0)

    def _begin(self, job: Job, outcomes: dict[int, Outcome]) -> None:
        slot = self.free.pop(0)
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            finished = finished_run(job.folder)
            if slurm.first():
                with files.only_one(job.folder):  # another process may be busy with this run
                    if finished is None:
                        status.write(job.folder, "pending", name=job.name)
            with open(job.folder / LOG, "ab") as log:
                logged = log.tell()
                # A session of its own: Ctrl-C reaches the jobs through this process only. The pipe is never written;
                # its end tells a job that this process is gone, whatever killed it.
                process = subprocess.Popen(
                    self.command(job),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=os.environ | slot | {"AAVAE_JOB": "1"},
                    start_new_session=True,
                )
        except (OSError, UserError) as error:
            outcomes[job.number] = Outcome("failed", None, f"it could not be started: {error}")
            self.free.append(slot)
            return
        self.running.append(_Running(job, process, slot, logged, finished))
        if self.stopped is not None:  # while it was begun
            self._send(signal.SIGTERM)

    def _outcome(self, ended: _Running) -> Outcome:
        job, code, said = ended.job, ended.process.returncode, {}
        with suppress(UserError):
            said = status.read(job.folder) or {}
        state, reason = said.get("state"), said.get("reason")
        if code == 0 and state == "done":
            return Outcome("done", said.get("score"))
        if state not in ("failed", "interrupted"):  # it could not say so itself
            state, reason = _died(code, self.stopped is not None, last_words(job.folder / LOG, ended.logged))
            if said and said == ended.finished:  # it has not begun: what was done before still is
                return Outcome(state, None, reason)
            with suppress(UserError):  # a full disk may be what it died of
                if slurm.first():
                    status.write(job.folder, state, reason, ended=status.now())
        return Outcome(state, None, reason)

    def _stop(self, signum: int, first: bool) -> None:
        signals.write(
            "\nstopping: what runs saves itself first; Ctrl-C again kills it\n" if first else "\nkilling them\n"
        )
        self.stopped = self.stopped or signum
        self._deadline = time.monotonic() + GRACE
        self._send(signal.SIGTERM if first else signal.SIGKILL)

    def _send(self, signum: int) -> None:
        for running in self.running:
            with suppress(ProcessLookupError, PermissionError):  # just dead; to macOS a dead group is forbidden
                if signum == signal.SIGKILL:
                    os.killpg(running.process.pid, signum)  # its workers too
                else:
                    running.process.send_signal(signum)


def finished_run(folder: Path) -> dict | None:
    """The status of a run that is done, None for any other."""
    with suppress(UserError):  # what is damaged is written again
        said = status.read(folder)
        return said if said and said["state"] == "done" else None
    return None


def _died(code: int, stopping: bool, words: str) -> tuple[str, str]:
    if stopping and code == -signal.SIGKILL:
        return "interrupted", "stopped with the sweep"
    if asked := [s.name for s in signals.STOPS if code in (-s, 128 + s)]:  # before it could say so itself
        return "interrupted", "stopped with the sweep" if stopping else f"stopped by {asked[0]}"
    if code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        hint = ", as when memory runs out" if code == -signal.SIGKILL else ""
        return "failed", f"killed by {name}{hint}"
    if code in (1, 2) and words:  # an exception, or a refusal
        return "failed", words
    return "failed", f"ended with exit code {code} before it was done" + (f"; its last words: {words}" if words else "")


def last_words(log: Path, begin: int = 0) -> str:
    """The last line that is not empty in a log from byte `begin` on, without the name of the command."""
    with suppress(OSError), open(log, "rb") as handle:
        handle.seek(max(begin, handle.seek(0, os.SEEK_END) - TAIL))
        lines = handle.read().decode(errors="replace").splitlines()
        return re.sub(r"^aavae-\w+: ", "", next((line for line in reversed(lines) if line.strip()), ""))
    return ""
