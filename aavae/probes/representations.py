"""What probes compare: frozen maps from images to features, each made when it is first asked for."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from aavae.augmentations.pipeline import Pipeline
from aavae.datasets import Dataset, Images, sample, to_float
from aavae.errors import UserError
from aavae.models import Features, Model
from aavae.models.batchnorm import recalibrated
from aavae.runtime.device import Precision, full_float32, without_search
from aavae.runtime.randomness import generator_for

BASELINES = ("pixels", "h_untrained")  # the raw image, the encoder before training
NAMES = ("h", "mu", "z", *BASELINES)  # h: the encoder's features; of an autoencoder, the latent mean and a drawn latent
PIXEL_BYTES = 8 * 2**30  # a baseline of raw pixels that needs more memory is left out
BATCH = 500
LARGEST = 1500 * 32**2  # pixels of a batch for recalibration, which should hold all images where it can

Track = Callable[[Iterable, int, str], Iterator]


def untracked(items: Iterable, total: int, what: str) -> Iterator:
    """The items, without telling anyone how far it is."""
    return iter(items)


class Representation:
    """A frozen map from normalised images `(B, 3, H, W)` to features `(B, F)`, under a `name`.

    It computes in float32, and remembers the features of each split, so that several probes share one pass over the
    images. A probe that needs more finds the `encoder` (a module to copy, or None), the whole `model` (or None), an
    augmentation that makes `views`, the `precision` to train a copy in, whether BatchNorm's statistics are
    `recalibrated`, and `track(items, total, what)`, which shows how far a long loop is.
    """

    def __init__(
        self,
        name: str,
        features: Features,
        dataset: Dataset,
        device: torch.device,
        precision: Precision | None = None,
        track: Track = untracked,
        batch_size: int = BATCH,
        *,
        encoder: nn.Module | None = None,
        model: Model | None = None,
        views: Pipeline | None = None,
        recalibrated: bool = False,
    ):
        self.name, self.dataset, self.device, self.batch_size = name, dataset, device, batch_size
        self.encoder, self.model, self.views = encoder, model, views or Pipeline()
        self.recalibrated = recalibrated
        self.precision, self.track = precision or Precision.float32(device), track
        self._compute = features
        self._features: dict[str, tuple[Tensor, Any]] = {}

    def __call__(self, split: str) -> tuple[Tensor, Tensor]:
        """Features `(N, F)` float32 of the clean images of `split`, and labels `(N,)`, on one device."""
        if split not in self._features:
            self._features[split] = self.of(self.dataset[split], f"{self.name} of {split} images")
        return self._features[split]

    def of(self, split: Images, what: str = "features") -> tuple[Tensor, Tensor | None]:
        """Features and labels (None where there are none) of any images."""
        # Another draw for every `what`: a noise that two splits shared would make neighbours of unlike images.
        generator, total = generator_for("features", what), -(-len(split) // self.batch_size)
        batches = self.track(split.batches(self.batch_size), total, what)
        features = torch.cat([self.encode(self.normalized(batch), generator) for batch in batches])
        if not features.isfinite().all():
            raise UserError(f"the features {self.name} are not finite: the model has diverged; train with a smaller lr")
        return features, None if split.labels is None else split.labels.to(features.device)

    @torch.no_grad()
    @full_float32()
    @without_search()
    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Features `(B, F)` of normalised images, computed in float32; `generator` is for a representation that
        draws."""
        return self._compute(x, generator or generator_for("features", self.name)).flatten(1).float()

    def clean(self, images: Tensor) -> Tensor:
        """uint8 images as the float images in [0, 1] that are shown to the encoder, on the device."""
        return self.dataset.target(to_float(images.to(self.device)))

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 images in the encoder's units."""
        return self.dataset.normalize(self.clean(images))

    def limit(self, split: str, n: int) -> "Representation":
        """The same, with only n images of `split`."""
        if len(self.dataset[split]) > n:
            self._features[split] = self.of(sample(self.dataset[split], n))
        return self


class Representations:
    """The representations of one trained model, by name; those that cannot be had say why.

    `trained` is the whole model, or an encoder alone; probes see a frozen copy, which `recalibrates` its BatchNorm
    statistics on clean training images or keeps those of training. `untrained` makes the encoder before training, and
    is None where nobody knows it. All are computed in float32; `precision` is for probes that train a copy.
    """

    def __init__(
        self,
        trained: Model | nn.Module,
        untrained: Callable[[], nn.Module] | None,
        dataset: Dataset,
        augmentation: Pipeline,
        device: torch.device,
        precision: Precision,
        *,
        recalibrates: bool = False,
        recalibration_images: int = 10_000,
        track: Track = untracked,
    ):
        self.dataset, self.device, self.precision, self.track = dataset, device, precision, track
        self._recalibrates = recalibrates
        self._untrained, self._recalibration_images = untrained, recalibration_images
        forward: Callable = type(trained).clean if isinstance(trained, Model) else nn.Module.__call__
        frozen = self._recalibrated(trained, forward) if recalibrates else copy.deepcopy(trained).eval()
        self.model = frozen if isinstance(frozen, Model) else None
        self.encoder = frozen.encoder if isinstance(frozen, Model) else frozen
        self._own = frozen.features() if isinstance(frozen, Model) else {}
        # A model trained without augmentation is shown the views that its dataset recommends.
        self.views = augmentation if augmentation.augments else dataset.views()
        self._made: dict[str, Representation] = {}

    @full_float32()
    @without_search()
    def _recalibrated(self, module: nn.Module, forward: Callable = nn.Module.__call__) -> nn.Module:
        some = sample(self.dataset["pretrain"], self._recalibration_images)
        # In as few batches as memory allows, and equal ones: each normalises by its own statistics.
        parts = -(-len(some) // max(BATCH, LARGEST // self.dataset.image_size**2))

        def batches() -> Iterator[Tensor]:
            if len(some) > 1:  # one image has no variance
                for images in some.batches(-(-len(some) // parts)):
                    yield self.dataset.normalize(self.dataset.target(to_float(images.to(self.device))))

        return recalibrated(module, batches(), forward)

    def missing(self, name: str) -> str | None:
        """Why there is no representation `name`; None if there is one."""
        if name not in ("h", *BASELINES, *self._own):
            if self.model is None:
                return f"{name} needs a checkpoint of the whole model; this file holds an encoder"
            return f"this model has no {name}, only {' and '.join(['h', *self._own])}"
        if name == "h_untrained" and self._untrained is None:
            return "it is unknown how this encoder was initialised"
        largest = self.dataset["train" if self.dataset.labelled else "pretrain_val"]
        pixels = 3 * self.dataset.image_size**2 * 4 * len(largest)
        if name == "pixels" and pixels > PIXEL_BYTES:
            return f"raw pixels would take {pixels / 2**30:.0f} GiB"
        return None

    def __getitem__(self, name: str) -> Representation:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Representation:
        encoder = self.encoder if name == "h" else None
        if name == "h_untrained":
            assert self._untrained is not None  # else it is `missing`
            # BatchNorm as it starts, with 0 and 1, would make it an unfair baseline.
            encoder = self._recalibrated(self._untrained().to(self.device))
        return Representation(
            name,
            self._features(name, encoder),
            self.dataset,
            self.device,
            self.precision,
            self.track,
            encoder=encoder,
            model=None if name in BASELINES else self.model,
            views=self.views,
            recalibrated=self._recalibrates and name not in BASELINES,
        )

    def _features(self, name: str, encoder: nn.Module | None) -> Features:
        if encoder is not None:
            return lambda x, generator: encoder(x)
        return (self._own | {"pixels": lambda x, generator: x})[name]
