"""`metrics.jsonl`: what was logged, a line per step."""

import contextlib
import json
import math
from pathlib import Path

from aavae.errors import UserError
from aavae.loggers import Beginning
from aavae.runtime import files


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
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if files.parsed(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
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
