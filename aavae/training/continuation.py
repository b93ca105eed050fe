"""Where a run begins: at step 0, or at a checkpoint of its own folder or of another."""

import contextlib
from pathlib import Path
from typing import Any

import torch

from aavae.datasets import same_images
from aavae.errors import Damaged, UserError
from aavae.loggers.screen import Reporter
from aavae.runs import status
from aavae.runs.identity import identity, identity_config
from aavae.runs.provenance import PROVENANCE
from aavae.runs.results import RESULTS
from aavae.runtime import files, threads
from aavae.training import resume as restart
from aavae.training.trainer import Trainer
from aavae.weights import checkpoint, encoder_file, schema


class Continuation:
    """Puts `trainer` where a run in `folder` begins; `config` is the run's, and `data` the fingerprint of its images.

    Afterwards `remembered` is what the loggers had to remember.
    """

    def __init__(self, trainer: Trainer, folder: Path, config: dict, data: str | None, reporter: Reporter):
        self.trainer, self.folder, self.config, self.data, self.reporter = trainer, folder, config, data, reporter
        self.remembered: dict[str, Any] = {}
        self._source: dict = {}  # the config of the checkpoint

    def find(self, how: str) -> None:
        """Begin where `resume` = `how` says: auto, never, or a path. Raises UserError where that cannot be done."""
        self.remove(".*.tmp")  # of a process that was killed while it wrote
        if how == "never":
            return
        if how == "auto":
            self._continue()
            return
        source = Path(how)
        if source.is_dir():
            if (found := checkpoint.find(source, schema.JUDGED, self._restore)) is None:
                raise UserError(f"there is no checkpoint in {how}")
            if found.note:
                self.reporter.say(found.note)
        else:
            self._restore(checkpoint.load(source, schema.JUDGED), source)
        self._refuse_anothers_name(how)
        own = list(self.folder.glob("*.pt"))
        if source.absolute() not in (self.folder, *own) and own:
            raise UserError(f"{self.folder} holds a run already; name another hydra.run.dir= for resume={how}")

    def _continue(self) -> None:
        """Go on from the newest good checkpoint in the run's own folder."""
        if strange := [p for p in (self.folder / checkpoint.LAST, *self.folder.glob("*.pt")) if p.is_dir()]:
            raise UserError(f"{strange[0]} is a folder, where a checkpoint is to be written; move it away")

        def restore(state: dict, path: Path) -> None:
            self._refuse_another_run(state)
            self._restore(state, path)

        try:
            found = checkpoint.find(self.folder, schema.JUDGED, restore)
        except Damaged as error:
            raise UserError(f"{error}; resume=never starts the run again") from error
        if found is None:
            self._refuse_a_lost_checkpoint()
            return
        self.trainer.saved = self.trainer.step
        if found.note:
            self.reporter.say(found.note)
            if self.trainer.processes.leads:  # or the next one written would make the damaged one the previous
                files.also_as(found.path, checkpoint.LAST)
        self.remembered = found.state["loggers"]

    def _restore(self, state: dict, path: Path) -> None:
        self._source = state["config"]
        restart.restore(self.trainer, state, str(path))
        self._take_threads(state.get("threads"))

    def _take_threads(self, before: int | None) -> None:
        # Sums have the same bits only with as many threads.
        here, cores = torch.get_num_threads(), len(threads.cores())
        if self.trainer.device.type != "cpu" or before in (None, here):
            return
        if threads.chosen() or before > cores:
            self.reporter.say(f"threads     {here}, {before} before: last digits can differ from an unbroken run's")
        else:
            torch.set_num_threads(before)
            self.reporter.say(f"threads     {before}, as before, so that all numbers are those of an unbroken run")

    def forget(self) -> None:
        """Delete what a run of before has left in the folder."""
        self.remove(checkpoint.LAST, checkpoint.PREVIOUS, "epoch_*.pt", encoder_file.ENCODER, RESULTS, PROVENANCE)

    def remove(self, *patterns: str) -> None:
        """Delete the files of the folder that fit a pattern."""
        for stale in (p for pattern in patterns for p in self.folder.glob(pattern)):
            if self.trainer.processes.leads:
                stale.unlink(missing_ok=True)

    def _refuse_a_lost_checkpoint(self) -> None:
        # A run that was stopped before its first checkpoint starts afresh; one that had a checkpoint does not.
        before = None
        with contextlib.suppress(UserError):
            before = status.read(self.folder)
        if (saved := (before or {}).get("saved")) is not None:
            raise UserError(
                f"{self.folder} had a checkpoint of step {saved:,}, which is gone; put {checkpoint.LAST} back, "
                "or start the run again with resume=never"
            )

    def _refuse_anothers_name(self, how: str) -> None:
        # The folder would say that these settings trained it from the beginning.
        if self.folder.name == identity(self.config) and (changed := self._changed(self._source)):
            raise UserError(
                f"resume={how} continues a run with other settings, {changed}; name hydra.run.dir= for it, or start "
                "from its weights with encoder.weights="
            )

    def _changed(self, before: dict) -> str:
        """What decides the weights and differs in the config of a checkpoint; "" if nothing does."""
        before, now = identity_config(before), identity_config(self.config)
        changed = [k for k in sorted(before | now) if before.get(k) != now.get(k)]
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        return ", ".join(f"{k}={before.get(k)} (now {now.get(k)})" for k in changed[:4]) + more

    def _refuse_another_run(self, state: dict) -> None:
        ways_out = "name another hydra.run.dir=, or start it again with resume=never"
        if changed := self._changed(state["config"]):
            raise UserError(f"{self.folder} holds another run: {changed}; {ways_out}")
        if state["step"] and not same_images(state["data"], self.data):
            raise UserError(
                f"{self.folder} holds a run on other images than those given now, of which "
                f"{len(self.trainer.loader.split):,} are for pretraining; put back what was removed or changed, or "
                f"{ways_out}"
            )
