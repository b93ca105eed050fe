"""Where numbers and pictures go: `metrics.jsonl` always, dashboards where asked for, and all of them as one."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aavae.errors import first_line
from aavae.runtime import secrets
from aavae.runtime.output import complain
from aavae.runtime.words import shortened


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What a logger is told when a run starts or goes on: where, from which step, under which names.

    `job_type` is pretrain, evaluate or report; `chosen` are the options of the config's groups; `remembered` is what
    the logger's `state` was in the checkpoint.
    """

    folder: Path
    step: int = 0
    config: dict = dataclasses.field(default_factory=dict)
    chosen: dict = dataclasses.field(default_factory=dict)
    name: str | None = None
    group: str | None = None
    remembered: dict = dataclasses.field(default_factory=dict)
    job_type: str = "pretrain"
    provenance: dict = dataclasses.field(default_factory=dict)

    @property
    def rewrites(self) -> bool:
        """Whether what was logged after `step` will be logged again: by a training, not by an evaluation."""
        return self.job_type == "pretrain"


def name_for(method: str, dataset: str, folder: Path) -> str:
    """The name of a run that nobody has named: `aavae-cifar10-0123456789`, the last part of which is its folder's."""
    return f"{method}-{dataset}-{folder.name}"


class Loggers:
    """Several loggers as one, by name.

    A logger has `start`, `log`, `picture`, `results`, `state` and `close`, and `place`: the file or folder that it
    writes in the run folder; it may have `report` and `encoder`. One that fails is said once on stderr and left out
    from then on, so that a network does not end days of training; one that calls itself `indispensable` raises.
    """

    def __init__(self, loggers: dict[str, Any]):
        self._loggers = loggers
        self._lost: set[str] = set()
        self._remembered: dict[str, dict] = {}

    def items(self):
        """Names and loggers."""
        return self._loggers.items()

    def start(self, run: Beginning) -> None:
        """Start all; each is told what it had remembered in the checkpoint.

        Raises what a logger raises, after closing those already open and removing what they put into the run folder.
        """
        self._remembered = dict(run.remembered)
        # Weights & Biases allows 128 characters, and nobody reads more.
        short: dict[str, Any] = {key: shortened(name) for key in ("name", "group") if (name := getattr(run, key))}
        without = {key: secrets.hidden(getattr(run, key)) for key in ("config", "chosen", "provenance")}
        run = dataclasses.replace(run, **without, **secrets.hidden(short))
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

    def report(self, head: list[str], rows: list[list[str]], figures: dict[str, Any]) -> None:
        """What a sweep has found, as a table and as Plotly figures by title; all must have `report`."""
        self._tell(lambda logger: logger.report(head, rows, figures))

    def encoder(self, path: Path, facts: dict, card: str) -> None:
        """The encoder file of a run that has finished, what it says of itself, and its model card in Markdown."""
        self._tell(lambda logger: hasattr(logger, "encoder") and logger.encoder(path, facts, card))

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
                complain(f"the logger {name} failed ({first_line(error)}); the run continues without it")
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
                    complain(f"closing the logger {name} failed ({first_line(error)})")
        if interrupted:
            raise interrupted
