"""One step of training: views, `model.learn`, gradients, the optimizer."""

import contextlib
import copy
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from aavae.augmentations.pipeline import Pipeline
from aavae.datasets import Dataset
from aavae.datasets.loader import Batch, Loader
from aavae.errors import UserError
from aavae.models import Model, batchnorm, dropout
from aavae.probes.guests import Guest
from aavae.runtime.device import Precision, compiler, send
from aavae.runtime.processes import Processes
from aavae.runtime.randomness import generator_for, generators_for, seed_default, seed_for
from aavae.runtime.words import count
from aavae.training.health import Health
from aavae.training.meter import Meter
from aavae.training.parallel import Parallel
from aavae.training.recompute import Recompute
from aavae.training.schedules import Schedule
from aavae.training.settings import Settings
from aavae.training.validation import Inspector, joined


class Trainer:
    """One step of training after the other; every draw is a function of (seed, step, position in the batch of all
    processes).

    `inspector` looks at the model; `optimizer` and `schedule` are functions of the model and of the steps per epoch.
    `untrained` is the encoder at random weights, where the model's has others.
    Raises UserError where these cannot work together.
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
        settings: Settings,
        *,
        device: torch.device,
        precision: Precision,
        processes: Processes | None = None,
        untrained: nn.Module | None = None,
    ):
        self.settings, self.device, self.precision = settings, device, precision
        self.processes = processes or Processes()
        self.untrained_encoder = untrained or copy.deepcopy(model.encoder)
        self._layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        # torch's stubs know device and memory_format one at a time only.
        self.model = model.to(device, memory_format=self._layout)  # type: ignore[call-overload]
        self.model.processes = self.processes
        self.augmentation, self.dataset, self.inspector = augmentation, dataset.load(device), inspector
        compiled = compiler(device, settings.compile, settings.cuda_graphs)
        self._encode = compiled(self.model.clean)
        learn = compiled(self.model.learn)
        self._learn = self._parallel = Parallel(self.model, learn, self.processes, device, settings.accumulate)
        self._recompute = Recompute(self.model) if settings.grad_checkpointing else contextlib.nullcontext
        self._replays = settings.cuda_graphs and device.type == "cuda"
        batch_size, seed = settings.batch_size, settings.seed
        self.loader = Loader(dataset, augmentation, batch_size, seed, device, self.processes, model.n_views)
        self._refuse_equal_views()
        self._refuse_parts()
        self._refuse_mixed_statistics()
        self._share_statistics()
        dropout.share(self.model, self.processes, self.loader.rows // settings.accumulate)
        self.optimizer, self.schedule = optimizer(model), schedule(self.loader.steps_per_epoch)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = precision.scaler()
        self.meter = Meter(self.processes, overflows=("grad_norm",) if self.scaler.is_enabled() else ())
        self.health = Health(batch_size, self.loader.steps_per_epoch, self.schedule.warmup_steps)
        self.guests = guests
        self.learners = [guest for guest in guests if guest.learns and dataset.labelled]
        for guest in self.learners:
            guest.probe.begin(model.encoder.output_dim, dataset, device, precision)
        # Like the schedule, without `max_steps`, which only stops earlier.
        self.model.begin(settings.epochs * self.loader.steps_per_epoch, settings.batch_size)
        self.step, self.closed = 0, True  # closed: all that is due at the end of an epoch has been done
        self.score: float | None = None  # of the last validation or evaluation
        self.saved: int | None = None  # step of the last checkpoint written

    def _refuse_equal_views(self) -> None:
        if self.model.n_views > 1 and not self.augmentation.augments:
            raise UserError(
                f"without augmentation all views of an image are equal, and {type(self.model).__name__} compares "
                f"{self.model.n_views}; choose another augmentation than none"
            )

    def _refuse_parts(self) -> None:
        accumulate, rows = self.settings.accumulate, self.loader.rows
        if accumulate > 1 and not self.model.per_image:
            raise UserError(
                f"trainer.accumulate={accumulate} would change the loss of {type(self.model).__name__}, which compares "
                "the images of a batch with each other; keep it at 1, or choose a smaller batch_size"
            )
        if rows % accumulate or rows // accumulate < 2:
            raise UserError(
                f"{count(rows, 'image')} a process cannot be divided into {count(accumulate, 'part')} of two or more"
            )

    def _refuse_mixed_statistics(self) -> None:
        if self.settings.clean_pass == "every_step" and not self.model.whole:
            raise UserError(
                f"trainer.clean_pass=every_step would mix BatchNorm's statistics of whole images with those of what "
                f"{type(self.model).__name__} sees of them; say trainer.clean_pass=off"
            )

    def _share_statistics(self) -> None:
        """Say of which images BatchNorm takes its statistics."""
        settings, name, images = self.settings, type(self.model).__name__, self.settings.virtual_batch
        together = self.processes.world > 1 and settings.synchronises(self.model.per_image)
        if images is None:
            batchnorm.share(self.model, self.processes if together else Processes())
            return
        if together:
            raise UserError("trainer.virtual_batch divides what trainer.sync_batchnorm joins; leave one of them out")
        if self.model.n_views > 1 or not self.model.per_image:
            raise UserError(f"trainer.virtual_batch is for losses that are means over images, not for {name}")
        rows = self.loader.rows // settings.accumulate
        if rows % images:
            raise UserError(
                f"trainer.virtual_batch={images} does not divide the {count(rows, 'image')} that a process has at once"
            )
        batchnorm.share(self.model, Processes(), images)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        total, most = self.settings.epochs * self.loader.steps_per_epoch, self.settings.max_steps
        return total if most is None else min(total, most)

    @property
    def epoch(self) -> float:
        """Epochs trained so far."""
        return self.step / self.loader.steps_per_epoch

    # ---- One step -------------------------------------------------------------------------------------------------

    def train_step(self, batch: Batch, measure: bool = False) -> dict[str, Tensor]:
        """One optimizer step on this process's images; returns the loss terms, and with `measure` the diagnostics."""
        if self._replays:  # Graphs keep what they wrote (clean pass, gradients of a part) until then.
            torch.compiler.cudagraph_mark_step_begin()
        self._set_learning_rate()
        draws, noise = self._draw(batch.source.shape[-1])
        terms: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        for i, rows in enumerate(self._parts(len(batch.clean))):
            x = self._normalized(batch.clean[rows])
            views = joined([self._view(batch, v, rows, draw, x) for v, draw in enumerate(draws)])
            with self.precision.autocast():
                clean = self._clean_pass(x)
            with self._parallel.part(i):
                # In a block of its own: autocast keeps the weights that it has cast without gradients.
                with self.precision.autocast(), self._recompute():
                    output, part = self._learn(views, x, None if noise is None else noise[rows])
                self.scaler.scale(part["loss"] / self.settings.accumulate).backward()
            for name, value in part.items():
                terms[name] = terms[name] + value.detach() / self.settings.accumulate
        self.scaler.unscale_(self.optimizer)
        if self.settings.clip is not None:
            terms["grad_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.model.after_step(self.step)
        for guest in self.learners:  # on their own labelled images; the encoder learns nothing from them
            terms |= guest.probe.learn(self.model.encoder, self.step)
        if measure:
            generator, (_, std) = generator_for(self.settings.seed, "diagnostics", self.step), self.dataset.constants(x)
            with torch.no_grad():
                terms |= self.model.measure(output, x, clean, std, generator)
        return dict(terms)

    def _set_learning_rate(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * (self.schedule(self.step) if group.get("scheduled", True) else 1.0)

    def _draw(self, size: int) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        # For the batch of all processes, of which each takes its rows: the numbers do not depend on how many there are.
        total, mine = self.loader.batch_size, self.loader.share
        generators = generators_for(self.model.n_views, self.settings.seed, "augmentation", self.step)
        draws = self.augmentation.draws(total, size, generators)
        # torch draws dropout itself: layers draw for the whole batch too, and keep their rows (`dropout.share`).
        seed_default(self.device, seed_for(self.settings.seed, "dropout", self.step))
        noise = None
        if self.model.noise_dim:
            generator = generator_for(self.settings.seed, "noise", self.step)
            noise = send(torch.randn(total, self.model.noise_dim, generator=generator)[mine], self.device)
        return [{name: values[mine] for name, values in draw.items()} for draw in draws], noise

    def _parts(self, n: int) -> Iterator[slice]:
        size = n // self.settings.accumulate
        return (slice(i * size, (i + 1) * size) for i in range(self.settings.accumulate))

    def _normalized(self, images: Tensor) -> Tensor:
        return self.dataset.normalize(images).contiguous(memory_format=self._layout)

    def _view(self, batch: Batch, v: int, rows: slice, draws: dict[str, Tensor], x: Tensor) -> Tensor:
        if not self.augmentation.augments:
            return x  # the clean image itself, its target transform included
        part = {name: values[rows] for name, values in draws.items()}
        return self._normalized(self.augmentation.apply(batch.source_of(v)[rows], part, batch.cropped))

    @torch.no_grad()
    def _clean_pass(self, x: Tensor) -> object | None:
        return self._encode(x) if self.settings.clean_pass == "every_step" else None
