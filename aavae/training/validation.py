"""The losses and densities of a held-out split, over fixed views and fixed noise."""

import torch
from torch import Tensor

from aavae.augmentations.pipeline import Pipeline
from aavae.datasets import Dataset, Split, to_float
from aavae.models.autoencoder import AutoEncoder
from aavae.models.diagnostics import (
    active_units,
    agreement,
    density,
    dequantisation,
    latent_statistics,
    log_weights,
    shifted,
)
from aavae.runtime.device import Precision, send, without_search
from aavae.runtime.randomness import generator_for

BATCH = 128  # not that of training, on which the draws would depend then


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
    def run(self, model: AutoEncoder, objective, split: Split, precision: Precision) -> dict[str, float]:
        """Metrics by name, each the mean over the images of `split` (active_units: over the split)."""
        was_training = model.training
        model.eval()
        rows, sizes, mus = [], [], []
        for i, images in enumerate(split.batches(BATCH)):
            metrics, mu = self._batch(model, objective, images, i, precision)
            rows.append(torch.stack(list(metrics.values())))
            sizes.append(len(images))
            mus.append(mu)
        model.train(was_training)
        shares = torch.tensor(sizes, dtype=torch.float64) / len(split)
        means = shares @ torch.stack(rows).cpu().double()  # the one place that waits for the device
        return dict(zip(metrics, means.tolist(), strict=True)) | {"active_units": active_units(torch.cat(mus)).item()}

    def _batch(
        self, model, objective, images: Tensor, i: int, precision: Precision
    ) -> tuple[dict[str, Tensor], Tensor]:
        dataset, n, d = self.dataset, len(images), model.latent_dim
        generator = generator_for(self.seed, "validation", i)
        source = to_float(send(images, self.device))
        clean = dataset.target(source)
        x = dataset.normalize(clean)
        draws = self.augmentation.draw(n, source.shape[-1], generator)
        view = dataset.normalize(self.augmentation.apply(source, draws)) if self.augmentation.augments else x
        noise = send(torch.randn(self.samples + 1, n, d, generator=generator), self.device)
        _, std = dataset.constants(x)
        offset = dequantisation(x, std, generator)
        terms: list[dict[str, Tensor]] = []
        weights, weights_8bit = [], []
        with precision.autocast():
            clean_code, code = model.encode(x), model.encode(view)
            # One sample at a time: K·B reconstructions at once would need K times the memory.
            for sample_noise in noise[: self.samples if model.stochastic else 1]:
                output = model.decode(code, sample_noise)
                terms.append(objective(output, x))
                if model.stochastic:
                    weights.append(log_weights(objective, output, x))
                    weights_8bit.append(log_weights(objective, *shifted(output, x, offset)))
        metrics = {name: torch.stack([t[name] for t in terms]).mean() for name in terms[0]}
        if weights:
            metrics |= density(torch.stack(weights), torch.stack(weights_8bit), x[0].numel(), std)
        metrics |= agreement(clean_code, output, noise[-1] if model.stochastic else None) | latent_statistics(code)
        return metrics, clean_code.mu
