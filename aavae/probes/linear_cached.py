"""Logistic regression on cached features."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aavae.datasets import Dataset
from aavae.errors import UserError
from aavae.probes.representations import Representation
from aavae.runs.results import record
from aavae.runtime.words import count


def fit_softmax(features: Tensor, labels: Tensor, num_classes: int, weight_decay: float, steps: int) -> nn.Linear:
    """Softmax regression by full-batch L-BFGS: minimises mean cross-entropy + weight_decay/2 · ‖W‖² (bias free)."""
    head = nn.Linear(features.shape[1], num_classes, device=features.device, dtype=features.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    solver = torch.optim.LBFGS(head.parameters(), max_iter=steps, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(head(features), labels) + 0.5 * weight_decay * head.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)
    return head


def scale_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `(F,)` by which features `(N, F)` are standardised."""
    std = features.std(0)
    # A feature that is constant but for rounding has nothing to standardise.
    return features.mean(0), torch.where(std > 1e-5 * features.abs().amax(0), std, 1.0)


class LinearCached:
    """Linear classifier on standardised features without augmentation; weight decay chosen on the validation split."""

    def __init__(self, weight_decays: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1), steps: int = 100):
        if not weight_decays or min(weight_decays) < 0 or steps < 1:
            raise UserError("probe.linear_cached: weight_decays must be 0 or more, and steps 1 or more")
        self.weight_decays, self.steps = tuple(weight_decays), steps

    def run(self, encode: Representation, dataset: Dataset) -> list[dict]:
        """The accuracy of the chosen classifier on validation and test images."""
        train, labels = encode("train")
        mean, std = scale_of(train)
        data = {s: ((encode(s)[0] - mean) / std, encode(s)[1]) for s in ("train", "val", "test")}

        def accuracy(head: nn.Linear, split: str) -> float:
            features, truth = data[split]
            return (head(features).argmax(1) == truth).float().mean().item()

        heads = {w: fit_softmax(*data["train"], dataset.num_classes, w, self.steps) for w in self.weight_decays}
        chosen = max(heads, key=lambda w: accuracy(heads[w], "val"))
        tried = ", ".join(f"{w:g}" for w in self.weight_decays)
        protocol = (
            f"standardised features, softmax regression, up to {count(self.steps, 'step', 'd')} of L-BFGS, no "
            f"augmentation, weight decay {chosen:g} chosen on val among {tried}, {len(labels)} training "
            "images, float32"
        )
        return [
            record("linear_cached", encode.name, s, accuracy(heads[chosen], s), len(data[s][1]), protocol)
            for s in ("val", "test")
        ]
