"""The loop: one step, one epoch, and when to log, validate, probe and save."""

import contextlib
import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from aavae.augmentations.pipeline import Pipeline
from aavae.datasets import Dataset
from aavae.datasets.loader import Batch, Loader
from aavae.errors import Interrupted, UserError, WorkerDied, refuse_below
from aavae.loggers import Loggers
from aavae.loggers.screen import Reporter
from aavae.models import Model
from aavae.probes.guests import Evaluation, Guest, Picture, keep_pictures
from aavae.probes.representations import BASELINES
from aavae.runs.results import name_of
from aavae.runtime import files
from aavae.runtime.device import Precision, compiler, send
from aavae.runtime.processes import Processes
from aavae.runtime.randomness import generator_for, generators_for, seed_default, seed_for
from aavae.runtime.signals import Signals
from aavae.runtime.words import count
from aavae.training import resume
from aavae.training.inspector import Inspector
from aavae.training.meter import Meter
from aavae.training.schedules import Schedule
from aavae.training.validation import joined
from aavae.weights import checkpoint


class Trainer:
    """Trains a model; every draw is a function of (seed, step, position in the batch of all processes), but for
    dropout, which torch draws: it is a function of (seed, step, process).

    `inspector` looks at the model; `optimizer` and `schedule` are functions of the model and of the steps per epoch.
    `clean_pass=every_step` runs the clean images through `model.clean` before each step, which moves
    BatchNorm's statistics as the released code does; with `off`, probes see a copy of the encoder with recalibrated
    statistics. Raises UserError for values out of range.
    """

    def __init__(
        self,
        model: Model,
        augmentation: Pipeline,
        dataset: Dataset,
        inspector: Inspector,
        guests: list[Guest],
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        schedule: Callable[[int], Schedule],
        *,
        epochs: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        precision: Precision,
        processes: Processes | None = None,
        accumulate: int = 1,
        clip: float | None = None,
        clean_pass: str = "every_step",
        channels_last: bool = True,
        compile: bool = False,
        cuda_graphs: bool = False,
        log_every: int = 50,
        validate_every: int = 20,
        checkpoint_epochs: tuple[int, ...] = (),
        save_minutes: float = 5.0,
        probe_every: int = 0,
        max_steps: int | None = None,
    ):
        refuse_below(
            {
                "epochs": (epochs, 0),
                "trainer.accumulate": (accumulate, 1),
                "trainer.log_every": (log_every, 1),
                "trainer.validate_every": (validate_every, 0),
                "trainer.save_minutes": (save_minutes, 0),
                "trainer.probe_every": (probe_every, 0),
                "trainer.max_steps": (0 if max_steps is None else max_steps, 0),
                **{f"trainer.checkpoint_epochs[{i}]": (epoch, 1) for i, epoch in enumerate(checkpoint_epochs)},
            }
        )
        if clip is not None and not (isinstance(clip, int | float) and clip > 0):
            raise UserError(f"trainer.clip must be positive or null, not {clip}")
        if clean_pass not in ("every_step", "off"):
            raise UserError(f"trainer.clean_pass must be every_step or off, not {clean_pass!r}")
        self.device, self.precision, self.processes = device, precision, processes or Processes()
        self.untrained_encoder = copy.deepcopy(model.encoder)
        self.model = model.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        self.model.processes = self.processes
        self.augmentation, self.dataset = augmentation, dataset.load(device)
        compiled, self._replays = compiler(device, compile, cuda_graphs), cuda_graphs and device.type == "cuda"
        self._encode, self._learn = compiled(self.model.clean), compiled(self.model.learn)
        self.loader = Loader(dataset, augmentation, batch_size, seed, device, self.processes, model.n_views)
        rows = self.loader.share.stop - self.loader.share.start
        if accumulate > 1 and not model.per_image:
            raise UserError(
                f"trainer.accumulate={accumulate} would change the loss of {type(model).__name__}, which compares the "
                "images of a batch with each other; keep it at 1, or choose a smaller batch_size"
            )
        if rows % accumulate or rows // accumulate < 2:
            raise UserError(
                f"{count(rows, 'image')} a process cannot be divided into {count(accumulate, 'part')} of two or more"
            )
        self.optimizer, self.schedule = optimizer(model), schedule(self.loader.steps_per_epoch)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = precision.scaler()
        self.epochs, self.seed, self.accumulate, self.clip = epochs, seed, accumulate, clip
        self.clean_pass, self.channels_last, self.log_every = clean_pass, channels_last, log_every
        self.validate_every, self.max_steps = validate_every, max_steps
        self.checkpoint_epochs, self.save_minutes = tuple(checkpoint_epochs), save_minutes
        self.inspector = inspector
        self.meter = Meter(self.processes, overflows=("grad_norm",) if self.scaler.is_enabled() else ())
        self.guests, self.probe_every = guests, probe_every
        self.learners = [guest for guest in guests if guest.learns and dataset.labelled]
        for guest in self.learners:
            guest.probe.begin(model.encoder.output_dim, dataset, device, precision)
        self.step, self.closed, self.score = 0, True, None
        self.saved: int | None = None  # step of the last checkpoint written

    # ---- One step -------------------------------------------------------------------------------------------------

    def train_step(self, batch: Batch, measure: bool = False) -> dict[str, Tensor]:
        """One optimizer step on this process's images; returns the loss terms, and with `measure` the diagnostics."""
        if self._replays:  # Graphs keep what they wrote (clean pass, gradients of a part) until then.
            torch.compiler.cudagraph_mark_step_begin()
        self._set_learning_rate()
        draws, noise = self._draw(batch.source.shape[-1])
        terms: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        for rows in self._parts(len(batch.clean)):
            x = self._normalized(batch.clean[rows])
            views = joined([self._view(batch, v, rows, draw, x) for v, draw in enumerate(draws)])
            with self.precision.autocast():
                clean = self._clean_pass(x)
            # Apart: weights that autocast has cast without gradient must not be met again with one.
            with self.precision.autocast():
                output, part = self._learn(views, x, None if noise is None else noise[rows])
            self.scaler.scale(part["loss"] / self.accumulate).backward()
            for name, value in part.items():
                terms[name] = terms[name] + value.detach() / self.accumulate
        self.processes.average_gradients(self.model.parameters())  # first: all must see what overflowed in one
        self.scaler.unscale_(self.optimizer)
        if self.clip is not None:
            terms["grad_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.model.after_step(self.step)
        for guest in self.learners:  # on their own labelled images; the encoder learns nothing from them
            terms |= guest.probe.learn(self.model.encoder, self.step)
        if measure:
            generator, (_, std) = generator_for(self.seed, "diagnostics", self.step), self.dataset.constants(x)
            with torch.no_grad():
                terms |= self.model.measure(output, x, clean, std, generator)
        return dict(terms)

    def _set_learning_rate(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * (self.schedule(self.step) if group.get("scheduled", True) else 1.0)

    def _draw(self, size: int) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        # For the batch of all processes, of which each takes its rows: the numbers do not depend on how many there are.
        total, mine = self.loader.batch_size, self.loader.share
        generators = generators_for(self.model.n_views, self.seed, "augmentation", self.step)
        draws = [self.augmentation.draw(total, size, generator) for generator in generators]
        rank = (
            self.processes.rank
        )  # torch draws dropout itself, on each process; the first one's draws are those of one
        seed_default(self.device, seed_for(self.seed, "dropout", self.step, *([rank] if rank else [])))
        noise = None
        if self.model.noise_dim:
            noise = torch.randn(total, self.model.noise_dim, generator=generator_for(self.seed, "noise", self.step))
            noise = send(noise[mine], self.device)
        return [{name: values[mine] for name, values in draw.items()} for draw in draws], noise

    def _parts(self, n: int) -> Iterator[slice]:
        size = n // self.accumulate
        return (slice(i * size, (i + 1) * size) for i in range(self.accumulate))

    def _normalized(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return self.dataset.normalize(images).contiguous(memory_format=layout)

    def _view(self, batch: Batch, v: int, rows: slice, draws: dict[str, Tensor], x: Tensor) -> Tensor:
        if not self.augmentation.augments:
            return x  # the clean image itself, its target transform included
        part = {name: values[rows] for name, values in draws.items()}
        return self._normalized(self.augmentation.apply(batch.source_of(v)[rows], part, batch.cropped))

    @torch.no_grad()
    def _clean_pass(self, x: Tensor) -> object | None:
        return self._encode(x) if self.clean_pass == "every_step" else None

    # ---- The loop -------------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        total = self.epochs * self.loader.steps_per_epoch
        return total if self.max_steps is None else min(total, self.max_steps)

    @property
    def epoch(self) -> float:
        """Epochs trained so far."""
        return self.step / self.loader.steps_per_epoch

    def fit(self, folder: Path, logger: Loggers, reporter: Reporter, signals: Signals, facts: dict) -> None:
        """Train to the end, from wherever the trainer stands, writing to `folder`; `facts` go into every checkpoint.

        Raises Interrupted after saving, when a signal arrived, and UserError when the loss is not finite, keeping the
        last good checkpoint. What is learned when a process that reads images dies is saved, too.
        """
        self.folder, self.logger, self.reporter, self.facts = folder, logger, reporter, facts
        self._saved = time.monotonic()
        self.meter.restart(self.step)
        self.model.train()
        reporter.start(self.step, self.total_steps)
        try:
            with signals.held():  # a step, a checkpoint: done whole, or not begun
                if not self.closed:
                    self._close_epoch(signals)
                while self.step < self.total_steps:
                    self._run_epoch(signals)
                self.save()
                self._end_if_asked(self._asked(signals), signals)  # while the last epoch was closed
        except WorkerDied:
            if self.processes.leads:
                self._write()
            signals.check()  # then that is why
            raise
        finally:
            reporter.stop()

    def _run_epoch(self, signals: Signals) -> None:
        epoch, first = divmod(self.step, self.loader.steps_per_epoch)
        for batch in self.loader.epoch(epoch, first):
            due = (self.step + 1) % self.log_every == 0
            self.meter.add(self.train_step(batch, measure=due))
            at_end = self.step % self.loader.steps_per_epoch == 0 or self.step >= self.total_steps
            self.closed = not at_end
            # Several processes agree about it only where they wait for each other anyway.
            asked = self._asked(signals) if self.processes.world == 1 or due or at_end else 0
            if due or at_end or asked:
                self._log()
            if not asked and at_end:
                self._close_epoch(signals)
            elif not asked and due and self._time_to_save():
                self.save()
            self._end_if_asked(asked, signals)
            if self.step >= self.total_steps:
                return

    def _asked(self, signals: Signals) -> int:
        """The signal by which any of the processes was asked to stop, or 0: all stop at the same step."""
        return self.processes.largest(signals.received or 0, self.device)

    def _end_if_asked(self, asked: int, signals: Signals) -> None:
        if asked:
            self.save()
            signals.note(asked)  # if it was another process's: this one may still be sent a copy
            raise Interrupted(asked)

    def _time_to_save(self) -> bool:
        # The clocks of several processes differ; one that waits for the others to save must not wait alone.
        return self.processes.any(time.monotonic() - self._saved >= 60 * self.save_minutes, self.device)

    def _log(self) -> None:
        # The one place in the loop that waits for the device.
        means, steps, steps_per_second = self.meter.read(self.step)
        metrics = {f"train/{name}": value for name, value in means.items()}
        learning_rate, speed = self.optimizer.param_groups[0]["lr"], steps_per_second * self.loader.batch_size
        if self.processes.leads:
            self.logger.log(metrics | {"train/lr": learning_rate, "images_per_second": speed}, self.step, self.epoch)
            self.reporter.update(self.step, f"{self.epoch:.1f}/{self.epochs}", metrics, speed)
        self._refuse_if_broken(means["loss"], steps)  # logged all the same, so that dashboards show where it broke

    def _refuse_if_broken(self, loss: float, steps: int) -> None:
        if math.isfinite(loss):
            return
        kept = self.folder / checkpoint.LAST
        saved = f"the last good checkpoint is {kept}" if kept.exists() else "no checkpoint had been written yet"
        raise UserError(
            f"the loss became {loss} between steps {self.step - steps + 1} and {self.step}; {saved}; "
            "a smaller optimizer.lr or trainer.clip=1 often helps"
        )

    def _close_epoch(self, signals: Signals) -> None:
        epoch, rest = divmod(self.step, self.loader.steps_per_epoch)
        last, found = self.step >= self.total_steps, []
        # Derived from the model as it stands: a run stopped in here looks again when it is resumed, and nothing is
        # told before all is found, so that nothing is told twice.
        with contextlib.suppress(Interrupted), signals.raised():
            if self.processes.leads:
                self._look(epoch, last, found)
        self._end_if_asked(self._asked(signals), signals)
        for tell in found:
            tell()
        self.closed = True
        if epoch in self.checkpoint_epochs and not rest:
            self.save()
            if self.processes.leads:
                files.also_as(self.folder / checkpoint.LAST, f"epoch_{epoch}.pt")
        elif last or self._time_to_save():
            self.save()
        self.meter.restart(self.step)

    def _look(self, epoch: int, last: bool, found: list[Callable[[], None]]) -> None:
        """Validate and probe where it is time to; `found` gets what tells the loggers."""
        step, at = self.step, self.epoch
        if self.validate_every and (epoch % self.validate_every == 0 or last):
            metrics, self.score = self.inspector.validate(self.learners)
            found.append(lambda: self.logger.log(metrics, step, at))
            picture = self.folder / "reconstructions.png"
            if self.inspector.draw(picture, at):
                found.append(lambda: self.logger.picture("reconstructions", picture, step))
        if self.probe_every and epoch % self.probe_every == 0 and not last:

            def log(records: list[dict], pictures: list[Picture]) -> None:
                values = {f"probe/{name_of(r)}": r["value"] for r in records}
                found.append(lambda: self.logger.log(values, step, at))
                found.append(lambda: keep_pictures(pictures, self.folder, self.logger, step))

            # The baselines do not change while it trains.
            own = [g._replace(features=tuple(f for f in g.features if f not in BASELINES)) for g in self.guests]
            representations = self.inspector.representations(track=self.reporter.track)
            Evaluation(own, representations, self.model, self.dataset, self.reporter, at).run(log)

    # ---- State ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write `last.pt`: a checkpoint of everything that cannot be derived from (seed, step)."""
        if self.processes.leads:
            self._write()
        self.processes.wait()
        self._saved = time.monotonic()

    def _write(self) -> None:
        broken = [n for n, p in self.model.named_parameters() if not torch.isfinite(p).all()]
        if broken:
            raise UserError(f"at step {self.step} {broken[0]} is not finite; the last good checkpoint is kept")
        checkpoint.save(self.folder / checkpoint.LAST, resume.state_of(self) | self.facts)
        self.saved = self.step
