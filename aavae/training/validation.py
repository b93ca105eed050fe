"""The losses and densities of a held-out split, over fixed views and fixed noise."""

import torch
from torch import Tensor

from aavae.augmentations.pipeline import Pipeline
from aavae.datasets import Dataset, Images, to_float
from aavae.models import Model
from aavae.models.diagnostics import active_units
from aavae.runtime.device import Precision, send, without_search
from aavae.runtime.randomness import generator_for, generators_for

BATCH = 128  # not that of training, on which the draws would depend then


def joined(views: list[Tensor]) -> Tensor:
    """Views `(B, 3, H, W)` as one `(V, B, 3, H, W)`, of which each, and all flattened, keep their memory layout."""
    return views[0][None] if len(views) == 1 else torch.cat(views).unflatten(0, (len(views), -1))


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
        """Metrics by name, each the mean over the images of `split` (active_units: over the split)."""
        was_training = model.training
        model.eval()
        rows, sizes, codes = [], [], []
        for i, images in enumerate(split.batches(BATCH)):
            if i and len(images) < BATCH and not model.per_image:
                break  # a loss that compares the images of a batch is another one for fewer of them
            metrics, code = self._batch(model, images, i, precision)
            rows.append(torch.stack(list(metrics.values())))
            sizes.append(len(images))
            codes += [] if code is None else [code]
        model.train(was_training)
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
        views = [self._view(source, g) for g in generators] if self.augmentation.augments else [x] * model.n_views
        _, std = dataset.constants(x)
        with precision.autocast():
            return model.validate(joined(views), x, std, self.samples, generator)

    def _view(self, source: Tensor, generator: torch.Generator) -> Tensor:
        draws = self.augmentation.draw(len(source), source.shape[-1], generator)
        return self.dataset.normalize(self.augmentation.apply(source, draws))
