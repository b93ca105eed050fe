"""Looking at a model while it trains: validation, a cheap kNN, reconstructions, and the encoder that probes see."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from aavae.augmentations.pipeline import Pipeline
from aavae.datasets import Dataset, Images, sample, to_float
from aavae.errors import refuse_below
from aavae.models import Model
from aavae.models.diagnostics import active_units
from aavae.probes.guests import Guest
from aavae.probes.knn import KNN
from aavae.probes.representations import Representations, Track, untracked
from aavae.reports.figures import reconstruction_figure
from aavae.runtime.device import Precision, full_float32, send, without_search
from aavae.runtime.processes import Processes
from aavae.runtime.randomness import generator_for, generators_for

BATCH = 128  # not that of training, on which the draws would depend then


def joined(views: list[Tensor]) -> Tensor:
    """Views `(B, 3, H, W)` as one `(V, B, 3, H, W)`, of which each, and all flattened, keep their memory layout."""
    return views[0][None] if len(views) == 1 else torch.cat(views).unflatten(0, (len(views), -1))


def counted(model: Model, n: int) -> int:
    """How many of n held-out images enter: without the last batch where the loss compares the images of a batch, since
    it is another one for fewer of them."""
    return n if model.per_image or n < BATCH else n - n % BATCH


class Validator:
    """Measures a model on a split in eval mode, with `samples` latent samples per image where the latent is drawn.

    Views and noise are functions of (seed, position) alone, so that every epoch, and every batch size of a sweep, is
    judged by the same draws.
    """

    def __init__(self, dataset: Dataset, augmentation: Pipeline, samples: int, seed: int, device: torch.device):
        self.dataset, self.augmentation = dataset, augmentation
        self.samples, self.seed, self.device = samples, seed, device

    @torch.no_grad()
    @without_search()
    def run(self, model: Model, split: Images, precision: Precision) -> dict[str, float]:
        """Metrics by name, each the mean over the images of `split` that count (active_units: over the split)."""
        was_training, together = model.training, model.processes
        model.eval()
        model.processes = Processes()  # one process looks, and the others do not take part
        rows: list[Tensor] = []
        sizes: list[int] = []
        codes: list[Tensor] = []
        try:
            for i, images in enumerate(split.batches(BATCH)):
                if sum(sizes) >= counted(model, len(split)):
                    break
                metrics, code = self._batch(model, images, i, precision)
                rows.append(torch.stack(list(metrics.values())))
                sizes.append(len(images))
                codes += [] if code is None else [code]
        finally:
            model.train(was_training)
            model.processes = together
        shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
        means = shares @ torch.stack(rows).cpu().double()  # the one place that waits for the device
        values = dict(zip(metrics, means.tolist(), strict=True))
        return values | ({"active_units": active_units(torch.cat(codes)).item()} if codes else {})

    def _batch(
        self, model: Model, images: Tensor, i: int, precision: Precision
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        dataset = self.dataset
        generator = generator_for(self.seed, "validation", i)
        source = to_float(send(images, self.device))
        x = dataset.normalize(dataset.target(source))
        # The first view's draws come from the generator that all else is drawn from.
        generators = [generator, *generators_for(model.n_views, self.seed, "validation", i)[1:]]
        views = [x] * model.n_views
        if self.augmentation.augments:
            draws = self.augmentation.draws(len(source), source.shape[-1], generators)
            views = [dataset.normalize(self.augmentation.apply(source, draw)) for draw in draws]
        _, std = dataset.constants(x)
        with precision.autocast():
            return model.validate(joined(views), x, std, self.samples, generator)


class Inspector:
    """Looks at `model` without changing it; if it `recalibrates`, probes see a copy with new BatchNorm statistics."""

    def __init__(
        self,
        model: Model,
        augmentation: Pipeline,
        dataset: Dataset,
        *,
        seed: int,
        device: torch.device,
        precision: Precision,
        recalibrates: bool,
        validate_train: bool,
        val_samples: int,
        recalibration_images: int,
        knn_images: int,
    ):
        refuse_below(
            {
                "trainer.val_samples": (val_samples, 1),
                "trainer.recalibration_images": (recalibration_images, 2),
                "trainer.knn_images": (knn_images, 1),
            }
        )
        self.model, self.augmentation, self.dataset = model, augmentation, dataset
        self.seed, self.device, self.precision, self.recalibrates = seed, device, precision, recalibrates
        self.validate_train = validate_train
        self.recalibration_images, self.knn_images = recalibration_images, knn_images
        self.validator = Validator(dataset, augmentation, val_samples, seed, device)
        self.knn = KNN(splits=("val",))

    def validate(self, learners: Sequence[Guest] = ()) -> tuple[dict[str, float], float]:
        """Losses and densities of the validation split and of as many training images, a cheap kNN, and how far the
        probes are that learn along; and the score: the kNN's accuracy, or without labels the negative loss."""
        splits = {"val": self.dataset["pretrain_val"]}
        if self.validate_train:
            splits["train_eval"] = sample(self.dataset["pretrain"], len(splits["val"]))
        metrics: dict[str, float] = {}
        for name, split in splits.items():
            values = self.validator.run(self.model, split, self.precision)
            metrics |= {f"{name}/{key}": value for key, value in values.items()}
        if not self.dataset.labelled:
            return metrics, -metrics["val/loss"]
        with full_float32():
            features = self.representations()["h"].limit("train", self.knn_images)
            metrics["val/knn"] = self.knn.run(features, self.dataset)[0]["value"]
            metrics |= {f"val/{guest.name}": guest.probe.accuracy(features, "val") for guest in learners}
        return metrics, metrics["val/knn"]

    def validation_loss(self) -> tuple[float, int, str]:
        """The loss of the validation split, of how many images, and how it was measured."""
        split = self.dataset["pretrain_val"]
        loss, n = self.validator.run(self.model, split, self.precision)["loss"], counted(self.model, len(split))
        how = "the loss of training, fixed views"
        if self.model.stochastic:
            how += f", {self.validator.samples} latent samples an image"
        return loss, n, how if self.model.per_image else f"{how}, over batches of {min(BATCH, n)} images"

    def representations(
        self, untrained: Callable[[], nn.Module] | None = None, track: Track = untracked
    ) -> Representations:
        """What the probes compare; `untrained` makes the encoder before training."""
        return Representations(
            self.model,
            untrained,
            self.dataset,
            self.augmentation,
            self.device,
            self.precision,
            recalibrates=self.recalibrates,
            recalibration_images=self.recalibration_images,
            track=track,
        )

    @torch.no_grad()
    def draw(self, path: Path, epoch: float, n: int = 10) -> bool:
        """Write a picture of validation images, their views, and what the model makes of them; False if nothing."""
        images = next(iter(sample(self.dataset["pretrain_val"], n).batches(n)))
        source = to_float(images.to(self.device))
        x = view = self.dataset.normalize(self.dataset.target(source))
        if self.augmentation.augments:
            view = self.dataset.normalize(self.augmentation(source, generator_for(self.seed, "picture")))
        was_training = self.model.training
        self.model.eval()
        with self.precision.autocast():
            made = self.model.picture(view)
        self.model.train(was_training)
        rows = {"original": x, "view": view} | {label: images.float() for label, images in made.items()}
        rows = {label: self.dataset.denormalize(images) for label, images in rows.items()}
        if not made:
            return False
        reconstruction_figure(path, rows, f"{self.dataset.name}, validation images, epoch {round(epoch, 2):.10g}")
        return True
