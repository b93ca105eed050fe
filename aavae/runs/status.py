"""What a run says of itself in `status.json`, with a heartbeat: one that died without a word is seen to be dead."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from aavae.errors import UserError
from aavae.runtime import files, secrets

STATUS = "status.json"
STATES = ("pending", "running", "done", "failed", "interrupted")
NUMBERS = (
    "step",
    "epoch",
    "epochs",
    "score",
    "saved",
    "seconds",
    "images_per_second",
    "seconds_left",
    "flop",
    "devices",
)  # or null
BEAT = 10.0  # seconds between heartbeats
PATIENCE = 60.0  # seconds without one after which a running job counts as dead


def now() -> str:
    """The time, with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def read(folder: Path) -> dict | None:
    """What the run in `folder` last said, None if nothing yet. Raises UserError where that is damaged."""
    try:
        status = files.parsed((folder / STATUS).read_text(encoding="utf-8"))
        if status["state"] not in STATES:
            raise ValueError(f"state {status['state']!r}")
        for key in NUMBERS:
            if not isinstance(status.get(key), int | float | None):
                raise ValueError(f"{key} {status[key]!r}")
        datetime.fromisoformat(status["updated"])
        return status
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / STATUS} is damaged ({error}); delete it, and the next start writes another"
        ) from error


def state_of(status: dict) -> str:
    """Its state, or `dead` if it says running, and its process is gone or, where nobody here can know that, nothing was
    heard of it for a minute."""
    if status["state"] != "running":
        return status["state"]
    pid, said = status.get("pid"), status.get("process")
    if isinstance(pid, int) and isinstance(said, str) and (known := _process(pid)):
        here, began = known
        if said.startswith(f"{here} "):  # whatever the clock was set to in between
            return "running" if said == f"{here} {began}" else "dead"
    silent = datetime.now().astimezone() - datetime.fromisoformat(status["updated"]).astimezone()
    return "dead" if silent.total_seconds() > PATIENCE else "running"


def _process(pid: int) -> tuple[str, str] | None:
    """Where processes are numbered as they are here, and when the one with this number began in there, if there is one;
    None where that is not to be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        here = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
    try:  # in ticks since the machine was started, which no clock changes
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return here, "gone" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return here, "gone"


def write(folder: Path, state: str, reason: str | None = None, **facts) -> None:
    """Say how the run in `folder` stands; `facts` replace those of before."""
    with contextlib.suppress(UserError):  # what is damaged is replaced
        facts = (read(folder) or {}) | facts
    status = secrets.hidden(facts | {"state": state, "reason": reason, "updated": now()})
    files.write(folder / STATUS, json.dumps(status, indent=1) + "\n")


class Heart:
    """The status of this process's run in `folder`; `facts` gives what changes while it runs.

    A run that `goes_on` keeps the time it began and the seconds it has taken.
    """

    def __init__(self, folder: Path, facts: Callable[[], dict], goes_on: bool = True, **constant):
        before = None
        with contextlib.suppress(UserError):
            before = read(folder)
        self.folder, self.facts, self._lock = folder, facts, threading.Lock()
        self._before = (before or {}).get("seconds") or 0.0 if goes_on else 0.0
        self._began = time.monotonic()
        known = _process(os.getpid())
        self._constant = constant | {
            "process": known and " ".join(known),
            "started": (before or {}).get("started") or now() if goes_on else now(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }

    def say(self, state: str, reason: str | None = None) -> None:
        """Write the state now; `seconds` counts all sessions of the run."""
        ended = None if state == "running" else now()
        seconds = self._before + time.monotonic() - self._began
        with self._lock:
            write(self.folder, state, reason, **self._constant, **self.facts(), seconds=round(seconds, 1), ended=ended)

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Say `running` now and every ten seconds until the block ends."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT):
                with contextlib.suppress(UserError):  # a disk that is full now may not be at the next beat
                    self.say("running")

        self.say("running")
        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
