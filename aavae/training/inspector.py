"""Looking at a model while it trains: validation, a cheap kNN, reconstructions, and the encoder that probes see."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from aavae.augmentations.pipeline import Pipeline
from aavae.datasets import Dataset, sample, to_float
from aavae.errors import refuse_below
from aavae.models import Model
from aavae.probes.guests import Guest
from aavae.probes.knn import KNN
from aavae.probes.representations import Representations, Track, untracked
from aavae.reports.figures import reconstruction_figure
from aavae.runtime.device import Precision, full_float32
from aavae.runtime.randomness import generator_for
from aavae.training.validation import Validator


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

    def validation_loss(self) -> float:
        """The loss of the validation split."""
        return self.validator.run(self.model, self.dataset["pretrain_val"], self.precision)["loss"]

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
