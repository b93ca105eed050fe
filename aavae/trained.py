"""A trained model as a run folder, checkpoint or `encoder.safetensors` describes it, for judging it anew."""

from pathlib import Path
from typing import NamedTuple

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


class Trained(NamedTuple):
    """What is known of a trained model; of an encoder alone, `config` and `learners` are empty."""

    model: AutoEncoder | nn.Module
    encoder: dict  # its architecture
    config: dict
    mean: tuple[float, ...]
    std: tuple[float, ...]
    step: int
    epoch: float
    seed: int | None
    dataset: str | None  # its name
    method: str
    data: str | None  # fingerprint of the images
    learners: dict  # states of the probes that learned along
    note: str | None  # what to tell the user


def load_trained(path: Path, trust: tuple[str, ...] = ()) -> Trained:
    """What lies at `path`: a run folder, a checkpoint, or an `encoder.safetensors`.

    `trust` are prefixes of modules, beside aavae's own, that the model may come from. Raises UserError for what is none
    of these.
    """
    allowed = (*checkpoint.ARCHITECTURES, *trust)
    note = None
    if path.suffix == ".safetensors":
        return _encoder_alone(path, allowed)
    if path.is_dir():
        state, note = checkpoint.find(path)
        if state is None and (path / "encoder.safetensors").exists():
            return _encoder_alone(path / "encoder.safetensors", allowed)
        if state is None:
            raise UserError(f"{path} is not a run folder: it holds no checkpoint and no encoder.safetensors")
    else:
        state = checkpoint.load(path)
    for part in ("encoder", "decoder"):
        _refuse_untrusted(state.get("architecture", {}).get(part, {}), allowed)
    model = checkpoint.model_of(state, path, allowed)
    config = state["config"]
    return Trained(
        model,
        state["architecture"]["encoder"],
        config,
        tuple(state["mean"]),
        tuple(state["std"]),
        state["step"],
        state["step"] / state["steps_per_epoch"],
        config["seed"],
        None,
        config["method"],
        state["data"],
        state.get("learners", {}),
        note,
    )


def _refuse_untrusted(node: dict, allowed: tuple[str, ...]) -> None:
    target = str(node.get("_target_", allowed[0]))
    if not target.startswith(allowed):
        raise UserError(f"the checkpoint wants to run {target}; if you trust it, say trust=[{target.split('.')[0]}]")


def _encoder_alone(path: Path, allowed: tuple[str, ...]) -> Trained:
    encoder, facts = checkpoint.encoder_of(path, allowed)
    return Trained(
        encoder,
        facts["architecture"],
        {},
        tuple(facts["mean"]),
        tuple(facts["std"]),
        0,
        facts.get("epochs", 0.0),
        facts.get("seed"),
        facts.get("dataset"),
        facts.get("method", "encoder"),
        None,
        {},
        None,
    )


def its_representations(
    trained: Trained,
    dataset: Dataset,
    augmentation: Pipeline,
    device: torch.device,
    precision: Precision,
    track: Track,
    trust: tuple[str, ...] = (),
) -> Representations:
    """What the probes compare, as at the end of its training."""

    def untrained() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            # As `build.model` does, which draws the encoder's weights first.
            torch.manual_seed(seed_for(trained.seed, "init"))
            return checkpoint.component(trained.encoder, (*checkpoint.ARCHITECTURES, *trust))

    settings = trained.config.get("trainer", {"clean_pass": "every_step", "recalibration_images": 10_000})
    return Representations(
        trained.model.to(device),
        None if trained.seed is None else untrained,
        dataset,
        augmentation,
        device,
        precision,
        recalibrates=settings["clean_pass"] == "off",
        recalibration_images=settings["recalibration_images"],
        track=track,
    )


def its_dataset(trained: Trained, changes: dict, trust: tuple[str, ...] = ()) -> Dataset:
    """The images it was trained on, with `changes` where they lie elsewhere now; another dataset if they name one.

    They are normalised as in training. Raises UserError where nobody knows which images they were.
    """
    chosen = "_target_" in changes
    if not chosen and not trained.config:
        example = trained.dataset or "cifar10"
        raise UserError(f"an encoder alone does not say where its images are; add dataset=, such as dataset={example}")
    node = {} if chosen else dict(trained.config["dataset"])
    changes = {k: v for k, v in changes.items() if v is not None}
    if "path" in changes and not chosen and "path" not in node:
        raise UserError(f"dataset.path= is not for {node['_target_']}, which it was trained on")
    node |= {k: v for k, v in changes.items() if chosen or k in node}
    dataset = checkpoint.component(node, ("",) if chosen else (*DATA, *trust))
    dataset.mean, dataset.std = trained.mean, trained.std
    return dataset


def its_augmentation(trained: Trained, dataset: Dataset, chosen: dict, trust: tuple[str, ...] = ()) -> Pipeline:
    """The augmentation it was trained with, or the one chosen instead; `auto` is the dataset's."""
    node = chosen or trained.config.get("augmentation")
    if not node:
        return NoAugmentation()
    node = {k: getattr(dataset, k) if v == "auto" else v for k, v in node.items()}
    return checkpoint.component(node, ("",) if chosen else (*DATA, *trust))
