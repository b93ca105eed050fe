"""The training loop: one epoch after the other, and when to log, look, probe and save."""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from aavae.errors import Interrupted, UserError, WorkerDied
from aavae.loggers import Loggers
from aavae.loggers.screen import Reporter
from aavae.probes.guests import Evaluation, Picture, keep_pictures
from aavae.probes.representations import BASELINES
from aavae.runs.results import name_of
from aavae.runtime import files
from aavae.runtime.signals import Signals
from aavae.training import resume
from aavae.training.trainer import Trainer
from aavae.weights import checkpoint


class Loop:
    """Trains to the end, from wherever `trainer` stands, writing to `folder`; `facts` go into every checkpoint."""

    def __init__(
        self, trainer: Trainer, folder: Path, logger: Loggers, reporter: Reporter, signals: Signals, facts: dict
    ):
        self.trainer, self.settings, self.folder = trainer, trainer.settings, folder
        self.logger, self.reporter, self.signals, self.facts = logger, reporter, signals, facts
        self._saved_at = time.monotonic()

    def run(self) -> None:
        """Train. Raises Interrupted after saving, when a signal arrived, and UserError when the loss is not finite,
        keeping the last good checkpoint. What is learned when a process that reads images dies is saved, too."""
        t = self.trainer
        t.meter.restart(t.step)
        t.model.train()
        self.reporter.start(t.step, t.total_steps)
        try:
            with self.signals.held():  # a step, a checkpoint: done whole, or not begun
                if not t.closed:
                    self._close_epoch()
                while t.step < t.total_steps:
                    self._run_epoch()
                self.save()
                self._end_if_asked(self._asked())  # while the last epoch was closed
        except WorkerDied:
            if t.processes.leads:
                self._write()
            self.signals.check()  # if a signal killed the worker, it is the reason
            raise
        finally:
            self.reporter.stop()

    def _run_epoch(self) -> None:
        t = self.trainer
        epoch, first = divmod(t.step, t.loader.steps_per_epoch)
        for batch in t.loader.epoch(epoch, first):
            due = (t.step + 1) % self.settings.log_every == 0
            t.meter.add(t.train_step(batch, measure=due))
            at_end = t.step % t.loader.steps_per_epoch == 0 or t.step >= t.total_steps
            t.closed = not at_end
            # Several processes agree about it only where they wait for each other anyway.
            asked = self._asked() if t.processes.world == 1 or due or at_end else 0
            if due or at_end or asked:
                self._log()
            if not asked and at_end:
                self._close_epoch()
            elif not asked and due and self._time_to_save():
                self.save()
                t.meter.restart(t.step)  # what it takes to save is no slowness of training
            self._end_if_asked(asked)
            if t.step >= t.total_steps:
                return

    def _asked(self) -> int:
        """The signal by which any of the processes was asked to stop, or 0: all stop at the same step."""
        return self.trainer.processes.largest(self.signals.received or 0)

    def _end_if_asked(self, asked: int) -> None:
        if asked:
            self.save()
            self.signals.note(asked)  # if it was another process's: this one may still be sent a copy
            raise Interrupted(asked)

    def _time_to_save(self) -> bool:
        # The clocks of several processes differ; one that waits for the others to save must not wait alone.
        due = time.monotonic() - self._saved_at >= 60 * self.settings.save_minutes
        return self.trainer.processes.any(due)

    def _log(self) -> None:
        t = self.trainer
        # The one place in the loop that waits for the device.
        means, steps, steps_per_second = t.meter.read(t.step)
        metrics = {f"train/{name}": value for name, value in means.items()}
        learning_rate, speed = t.optimizer.param_groups[0]["lr"], steps_per_second * t.loader.batch_size
        if t.processes.leads:
            logged = metrics | {"train/lr": learning_rate, "images_per_second": speed}
            self._tell(logged, t.step, t.epoch)
            self.reporter.update(t.step, f"{t.epoch:.1f}/{self.settings.epochs}", metrics, speed)
        self._refuse_if_broken(means["loss"], steps)  # logged all the same, so that dashboards show where it broke

    def _tell(self, metrics: dict[str, float], step: int, epoch: float) -> None:
        """Log the metrics, and what of them is a warning, or no longer one."""
        changed = self.trainer.health.look(step, epoch, metrics)
        self.logger.log(
            metrics | {f"health/{name}": float(said is not None) for name, said in changed.items()}, step, epoch
        )
        for said in filter(None, changed.values()):
            self.reporter.say(said)

    def _refuse_if_broken(self, loss: float, steps: int) -> None:
        if math.isfinite(loss):
            return
        kept = self.folder / checkpoint.LAST
        saved = f"the last good checkpoint is {kept}" if kept.exists() else "no checkpoint had been written yet"
        raise UserError(
            f"the loss became {loss} between steps {self.trainer.step - steps + 1} and {self.trainer.step}; {saved}; "
            "a smaller optimizer.lr or trainer.clip=1 often helps"
        )

    def _close_epoch(self) -> None:
        t = self.trainer
        epoch, rest = divmod(t.step, t.loader.steps_per_epoch)
        last, found = t.step >= t.total_steps, list[Callable[[], None]]()
        # Logged only when all is measured: a run that is stopped in here measures it all again when it is resumed, and
        # would log it twice.
        with contextlib.suppress(Interrupted), self.signals.raised():
            if t.processes.leads:
                try:
                    self._look(epoch, last, found)
                except Exception:  # what was learned is not lost with it
                    self._write()
                    raise
        self._end_if_asked(self._asked())
        for tell in found:
            tell()
        t.closed = True
        if epoch in self.settings.checkpoint_epochs and not rest:
            self.save()
            if t.processes.leads:
                files.also_as(self.folder / checkpoint.LAST, f"epoch_{epoch}.pt")
        elif self._time_to_save():
            self.save()
        t.meter.restart(t.step)

    def _look(self, epoch: int, last: bool, found: list[Callable[[], None]]) -> None:
        """Validate and probe where it is time to; `found` gets what tells the loggers."""
        t = self.trainer
        step, at = t.step, t.epoch
        if self.settings.validate_every and (epoch % self.settings.validate_every == 0 or last):
            metrics, t.score = t.inspector.validate(t.learners)
            found.append(lambda: self._tell(metrics, step, at))
            picture = self.folder / "reconstructions.png"
            if t.inspector.draw(picture, at):
                found.append(lambda: self.logger.picture("reconstructions", picture, step))
        if self.settings.probe_every and epoch % self.settings.probe_every == 0 and not last:

            def log(records: list[dict], pictures: list[Picture]) -> None:
                values = {f"probe/{name_of(r)}": r["value"] for r in records}
                found.append(lambda: self.logger.log(values, step, at))
                found.append(lambda: keep_pictures(pictures, self.folder, self.logger, step))

            # The baselines do not change while it trains.
            own = [g._replace(features=tuple(f for f in g.features if f not in BASELINES)) for g in t.guests]
            representations = t.inspector.representations(track=self.reporter.track)
            Evaluation(own, representations, t.model, t.dataset, self.reporter, at).run(log)

    def save(self) -> None:
        """Write `last.pt`: a checkpoint of everything that cannot be derived from (seed, step)."""
        if self.trainer.processes.leads:
            self._write()
        self.trainer.processes.wait()
        self._saved_at = time.monotonic()

    def _write(self) -> None:
        t = self.trainer
        broken = [n for n, p in t.model.named_parameters() if not torch.isfinite(p).all()]
        if broken:
            raise UserError(f"at step {t.step} {broken[0]} is not finite; the last good checkpoint is kept")
        checkpoint.save(self.folder / checkpoint.LAST, resume.state_of(t, self.logger.state()) | self.facts)
        t.saved = t.step
