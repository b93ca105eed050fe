"""Numbers and pictures in TensorBoard, below the run folder."""

import json
from pathlib import Path
from typing import Any

from aavae.errors import UserError
from aavae.loggers import Beginning
from aavae.runs.identity import identity_config
from aavae.runs.results import name_of
from aavae.runtime.words import markdown_table

FENCED = "```json\n{}\n```"


class TensorBoard:
    """Event files in the run folder's `tensorboard`, for `tensorboard --logdir` on the run or on a folder of runs.

    Raises UserError if tensorboard is not installed, and from `start` where the files cannot be written.
    """

    place = "tensorboard"

    def __init__(self):
        try:
            from aavae.loggers.event_file import EventFile
        except ImportError as error:
            raise UserError("logger=tensorboard needs `pip install 'aavae[tensorboard]'`") from error
        self._open = EventFile

    def start(self, run: Beginning) -> None:
        """Begin a file; what was written after the step of a resumed run disappears, as it will be written again."""
        folder, self._training = run.folder / self.place, run.rewrites
        self._step = run.step
        self._last: int | None = None
        try:
            self._events = self._open(folder, forget_after=run.step if run.rewrites else None)
            self._describe(run)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}") from error

    def _describe(self, run: Beginning) -> None:
        described = {"config": run.config, "provenance": run.provenance}
        for name, content in described.items():
            self._events.text(name, FENCED.format(json.dumps(content, indent=1)), run.step)
        if run.rewrites:
            decides = identity_config(run.config).items()
            settings: dict[str, Any] = {k: v for k, v in decides if v is not None and not k.endswith("_target_")}
            self._events.settings(settings, run.step)
        self._events.flush()

    def log(self, metrics: dict[str, float], step: int, epoch: float) -> None:
        """Scalars against `step`; not finite ones too; and the epoch, once a step."""
        if step != self._last:
            self._events.scalar("epoch", epoch, step)
        for name, value in metrics.items():
            self._events.scalar(name, value, step)
        self._events.flush()
        self._step = self._last = step

    def picture(self, name: str, path: Path, step: int) -> None:
        """An image panel."""
        self._events.image(name, path, step)
        self._events.flush()
        self._step = step

    def results(self, records: list[dict]) -> None:
        """Each result as a scalar at the step last heard of, and all of them as a table."""
        for r in records:
            self._events.scalar(f"results/{name_of(r)}", r["value"], self._step)
        self._events.text("results", table(records), self._step)
        self._events.flush()

    def state(self) -> dict:
        """Nothing has to be remembered: the folder is known, and what it holds is written through."""
        return {}

    def close(self, failed: bool = False) -> None:
        """Close the file, saying so where the run has reached its end."""
        # Only then: TensorBoard keeps the first word, and a failed run may yet be resumed.
        if self._training and not failed:
            self._events.success(self._step)
        self._events.close()


def table(records: list[dict]) -> str:
    """Records as a Markdown table."""
    if not records:
        return "nothing was judged"
    rows = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in r.values()] for r in records]
    return markdown_table(list(records[0]), rows)
