"""How the jobs of a sweep stand: a table that moves on a terminal, elsewhere a line for what changes."""

import os
import time
from contextlib import suppress

from rich.live import Live
from rich.table import Table
from rich.text import Text

from aavae.errors import UserError
from aavae.loggers.screen import console, duration, moves, say
from aavae.runs import status
from aavae.runs.sweep import Job
from aavae.runtime.output import spelt
from aavae.runtime.words import count

EVERY = 60.0  # seconds between lines where there is no terminal
FIRST = ("failed", "dead", "running", "interrupted", "pending", "done")  # what is shown where not all fits


class Board:
    """Shows `jobs`; those in `before` were done already. A context, in which `update` is called."""

    def __init__(self, jobs: list[Job], before: dict[int, str]):
        self.jobs, self.states = jobs, {job.number: "pending" for job in jobs} | before
        self.console = console()
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if moves(self.console) else None
        self._drawn = self._said = 0.0

    def __enter__(self) -> "Board":
        if self.live:
            self.live.start()
        self._said = time.monotonic()
        return self

    def __exit__(self, *_) -> None:
        if self.live:
            self.live.stop()

    def update(self, states: dict[int, str]) -> None:
        """Show what changed, while there is somebody to see it."""
        if self.console.quiet:
            return
        try:
            self._show(states)
        except (OSError, SystemExit):  # a terminal that is gone, a closed pipe, at which rich would exit
            self.console.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is said at the end

    def _show(self, states: dict[int, str]) -> None:
        changed = [
            job for job in self.jobs if states.get(job.number, self.states[job.number]) != self.states[job.number]
        ]
        self.states |= states
        if self.live and (changed or time.monotonic() - self._drawn >= 1):
            self._drawn = time.monotonic()
            self.live.update(self.table(), refresh=True)
        elif not self.live:
            for job in changed:
                self._line(job)
            if time.monotonic() - self._said >= EVERY:
                self._said = time.monotonic()
                running = [f"{j.name} {_epoch(_said(j))}" for j in self.jobs if self.states[j.number] == "running"]
                say(self.console, "; ".join([self._counts(), *running]))

    def _line(self, job: Job) -> None:
        self._said = time.monotonic()
        state, said = self.states[job.number], _said(job)
        more = _result(said) if state == "done" else f": {said['reason']}" if said.get("reason") else ""
        say(self.console, f"job {job.number} ({job.name}) {state}{more}")

    def _counts(self) -> str:
        count = {state: list(self.states.values()).count(state) for state in FIRST}
        return ", ".join(f"{n} {state}" for state, n in count.items() if n)

    def table(self) -> Table:
        """All jobs, or as many as fit, those that need looking at first."""
        room = max(5, self.console.size.height - 6)
        order = sorted(self.jobs, key=lambda job: FIRST.index(self.states[job.number]))[:room]
        more = f"{len(self.jobs) - room} more are not shown" if len(self.jobs) > room else None
        title = f"{count(len(self.jobs), 'job')}: {self._counts()}"
        table = Table(title=title, title_justify="left", caption=more)
        for name in ("job", "", "state", "epoch", "images/s", "score", "left"):
            # Where it is narrow, names are cut: numbers that are cut are none.
            table.add_column(name, justify="left" if name in ("", "state") else "right", no_wrap=name != "")
        for job in sorted(order, key=lambda job: job.number):
            state, said = self.states[job.number], _said(job)
            running = state == "running"
            begun = running and said.get("state") == "running"  # that is, it has said so itself
            ended = running and said.get("state") in ("done", "failed", "interrupted")  # but for its process
            shown = said.get("stage", state) if begun else "ending" if ended else "starting" if running else state
            speed, left = (said.get(k) if running else None for k in ("images_per_second", "seconds_left"))
            table.add_row(
                str(job.number),
                Text(spelt(job.name), no_wrap=True, overflow="ellipsis" if spelt("…") == "…" else "crop"),
                shown,
                _epoch(said),
                f"{speed:,.0f}" if speed else "",
                f"{said['score']:.3f}" if said.get("score") is not None else "",
                duration(left) if left else "",
            )
        return table


def _said(job: Job) -> dict:
    with suppress(UserError):
        return status.read(job.folder) or {}
    return {}


def _epoch(said: dict) -> str:
    return f"{said.get('epoch', 0):.1f}/{said['epochs']}" if said.get("epochs") else ""


def _result(said: dict) -> str:
    score = "" if said.get("score") is None else f", score {said['score']:.4f}"
    return score + (f", {duration(said['seconds'])}" if said.get("seconds") else "")
