"""Where numbers and pictures go: `metrics.jsonl` always, dashboards where asked for, and all of them as one."""

import contextlib
import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aavae import files
from aavae.errors import UserError, first_line
from aavae.words import shortened


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What a logger is told when a run starts or goes on: where, from which step, under which names.

    `job_type` is pretrain or evaluate; `remembered` is what the logger's `state` was in the checkpoint.
    """

    folder: Path
    step: int = 0
    config: dict = dataclasses.field(default_factory=dict)
    name: str | None = None
    group: str | None = None
    remembered: dict = dataclasses.field(default_factory=dict)
    job_type: str = "pretrain"
    provenance: dict = dataclasses.field(default_factory=dict)

    @property
    def rewrites(self) -> bool:
        """Whether what was logged after `step` will be logged again: by a training, not by an evaluation."""
        return self.job_type == "pretrain"


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, `step` and `epoch` first.

    Raises UserError, which ends the run, where it cannot be written.
    """

    place = "metrics.jsonl"
    indispensable = True  # a run that nobody can read is not worth its hours

    def start(self, run: Beginning) -> None:
        """Open the file; what a resumed run wrote after its checkpoint is dropped, as it will be written again."""
        self.path = run.folder / self.place
        with self._complaining():
            if run.rewrites:
                files.write(self.path, "".join(f"{line}\n" for line in self._until(run.step)))
            # Unbuffered: a line is on its way to the disk when `log` returns, and none is left for `close` to fail on.
            self._handle = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by close)

    def _until(self, step: int) -> list[str]:
        kept = []
        if self.path.exists() and step > 0:
            for line in self.path.read_text(errors="replace").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (json.JSONDecodeError, KeyError, TypeError):
                    break  # the line that was being written when the process died
        return kept

    def log(self, metrics: dict[str, float], step: int, epoch: float) -> None:
        """Append one line; what is not finite is written as null."""
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        line = json.dumps({"step": step, "epoch": epoch} | finite).encode() + b"\n"
        with self._complaining():
            while line:  # a disk that becomes full takes a part, and refuses the rest
                line = line[self._handle.write(line) :]

    @contextlib.contextmanager
    def _complaining(self):
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error

    def picture(self, name: str, path: Path, step: int) -> None:
        """Pictures are files of the run folder already."""

    def results(self, records: list[dict]) -> None:
        """Results have a file of their own."""

    def state(self) -> dict:
        """Nothing has to be remembered in a checkpoint."""
        return {}

    def close(self, failed: bool = False) -> None:
        """Close the file."""
        self._handle.close()


class Loggers:
    """Several loggers as one, by name.

    A logger has `start`, `log`, `picture`, `results`, `state` and `close`, and `place`: the file or folder that it
    writes in the run folder. One that fails is said once on stderr and left out from then on, so that a network does
    not end days of training; one that calls itself `indispensable` raises.
    """

    def __init__(self, loggers: dict[str, Any]):
        self._loggers = loggers
        self._lost: set[str] = set()
        self._remembered: dict[str, dict] = {}

    def start(self, run: Beginning) -> None:
        """Start all; each is told what it had remembered in the checkpoint.

        Raises what a logger raises, after closing those already open and removing what they put into the run folder.
        """
        self._remembered = dict(run.remembered)
        # Weights & Biases allows 128 characters, and nobody reads more.
        short = {key: shortened(name) for key in ("name", "group") if (name := getattr(run, key))}
        run = dataclasses.replace(run, **short)
        new = [path for logger in self._loggers.values() if not (path := run.folder / logger.place).exists()]
        try:
            for name, logger in self._loggers.items():
                logger.start(dataclasses.replace(run, remembered=run.remembered.get(name, {})))
        except BaseException:
            for logger in self._loggers.values():
                with contextlib.suppress(Exception):  # one was half open, others not at all; the first error counts
                    logger.close(failed=True)
            for path in new:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            self._loggers = {}  # none is left to close
            raise

    def log(self, metrics: dict[str, float], step: int, epoch: float) -> None:
        """Log scalars everywhere."""
        self._tell(lambda logger: logger.log(metrics, step, epoch))

    def picture(self, name: str, path: Path, step: int) -> None:
        """Log an image file everywhere."""
        self._tell(lambda logger: logger.picture(name, path, step))

    def results(self, records: list[dict]) -> None:
        """Log the final results everywhere."""
        self._tell(lambda logger: logger.results(records))

    def state(self) -> dict[str, dict]:
        """What each logger wants remembered in a checkpoint, by its name; the last word of those that are gone."""
        self._remembered |= self._tell(lambda logger: logger.state())
        return dict(self._remembered)

    def _tell(self, call: Callable[[Any], Any]) -> dict[str, Any]:
        answers = {}
        for name, logger in self._loggers.items():
            if name in self._lost:
                continue
            try:
                answers[name] = call(logger)
            except Exception as error:
                if getattr(logger, "indispensable", False):
                    raise
                self._lost.add(name)
                print(f"the logger {name} failed ({first_line(error)}); the run goes on without it", file=sys.stderr)
        return answers

    def close(self, failed: bool = False) -> None:
        """Close all; one that fails, or is interrupted, does not keep the others open."""
        interrupted = None
        for name, logger in self._loggers.items():
            try:
                logger.close(failed)
            except KeyboardInterrupt as error:
                interrupted = error
            except Exception as error:  # the numbers are on disk; a logger's farewell must not fail the run
                if name not in self._lost:
                    print(f"closing the logger {name} failed ({first_line(error)})", file=sys.stderr)
        if interrupted:
            raise interrupted
