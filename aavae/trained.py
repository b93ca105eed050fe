"""A trained model as a run folder, checkpoint or `encoder.safetensors` describes it, for judging it anew."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aavae import checkpoint
from aavae.datasets import Dataset
from aavae.errors import UserError
from aavae.model import AutoEncoder
from aavae.pipelines import NoAugmentation, Pipeline
from aavae.representations import Representations, Track
from aavae.runtime import Precision, seed_for

DATA = ("aavae.datasets.", "aavae.pipelines.")


@dataclass(frozen=True)
class Trained:
    """What is known of a trained model; of an encoder alone, its `config` is empty.

    `trust` names modules or packages, beside aavae's own, that model, images and augmentation may come from.
    """

    model: AutoEncoder | nn.Module
    architecture: dict  # of the encoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epoch: float
    method: str
    seed: int | None
    trust: tuple[str, ...]
    config: dict = field(default_factory=dict)
    step: int = 0
    data: str | None = None  # fingerprint of the images
    dataset: str | None = None  # its name, where there is no config
    learners: dict = field(default_factory=dict)  # states of the probes that learned along
    note: str | None = None  # what to tell the user

    def images(self, changes: dict) -> Dataset:
        """The images it was trained on, with `changes` where they lie elsewhere now; another dataset if they name one.

        They are normalised as in training. Raises UserError where nobody knows which images they were.
        """
        changes = {k: v for k, v in changes.items() if v is not None}
        chosen = "_target_" in changes
        if not chosen and not self.config:
            example = self.dataset or "cifar10"
            raise UserError(f"an encoder alone does not say where its images are; add dataset=, such as {example}")
        node = changes if chosen else dict(self.config["dataset"])
        if "path" in changes and "path" not in node:
            raise UserError(f"dataset.path= is not for {node['_target_']}, which it was trained on")
        dataset = self._build(node | {k: v for k, v in changes.items() if k in node}, chosen)
        dataset.mean, dataset.std = self.mean, self.std
        return dataset

    def augmentation(self, dataset: Dataset, chosen: dict) -> Pipeline:
        """The augmentation it was trained with, or the one chosen instead; `auto` is the dataset's."""
        node = chosen or self.config.get("augmentation")
        if not node:
            return NoAugmentation()
        return self._build({k: getattr(dataset, k) if v == "auto" else v for k, v in node.items()}, bool(chosen))

    def _build(self, node: dict, chosen: bool) -> Any:
        # What the user names may be any code; what the file names may not.
        return checkpoint.component(node, ("",) if chosen else checkpoint.trusting(self.trust, DATA))

    def representations(
        self, dataset: Dataset, augmentation: Pipeline, device: torch.device, precision: Precision, track: Track
    ) -> Representations:
        """What the probes compare, as at the end of its training."""
        unknown = {"clean_pass": "every_step", "recalibration_images": 10_000, "channels_last": True}
        settings = self.config.get("trainer", unknown)
        layout = torch.channels_last if settings["channels_last"] else torch.contiguous_format
        return Representations(
            # The layout of training, so that convolutions round as they did there.
            self.model.to(device, memory_format=layout),
            None if self.seed is None else self._untrained,
            dataset,
            augmentation,
            device,
            precision,
            recalibrates=settings["clean_pass"] == "off",
            recalibration_images=settings["recalibration_images"],
            track=track,
        )

    def _untrained(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            # As `build.model` does, which draws the encoder's weights first.
            torch.manual_seed(seed_for(self.seed, "init"))
            return checkpoint.component(self.architecture, checkpoint.trusting(self.trust))


def load_trained(path: Path, trust: tuple[str, ...] = ()) -> Trained:
    """What lies at `path`: a run folder, checkpoint, or `encoder.safetensors`. Raises UserError for none of these."""
    state, note = None, None
    if path.is_dir():
        state, note = checkpoint.find(path)
        if state is None:
            path = path / "encoder.safetensors"
            if not path.exists():
                raise UserError(f"{path.parent} is not a run folder: it holds no checkpoint and no encoder.safetensors")
    if path.suffix == ".safetensors":
        return _encoder_alone(path, trust)
    state, allowed = state or checkpoint.load(path), checkpoint.trusting(trust)
    model, config = checkpoint.model_of(state, path, allowed), state["config"]
    return Trained(
        model=model,
        architecture=state["architecture"]["encoder"],
        mean=tuple(state["mean"]),
        std=tuple(state["std"]),
        epoch=state["step"] / state["steps_per_epoch"],
        method=config["method"],
        seed=config["seed"],
        trust=trust,
        config=config,
        step=state["step"],
        data=state["data"],
        learners=state.get("learners", {}),
        note=note,
    )


def _encoder_alone(path: Path, trust: tuple[str, ...]) -> Trained:
    encoder, facts = checkpoint.encoder_of(path, checkpoint.trusting(trust))
    return Trained(
        model=encoder,
        architecture=facts["architecture"],
        mean=facts["mean"],
        std=facts["std"],
        epoch=facts.get("epochs", 0.0),
        method=facts.get("method", "encoder"),
        seed=facts.get("seed"),
        trust=trust,
        data=facts.get("data"),
        dataset=facts.get("dataset"),
    )
