"""A trained model as a run folder, checkpoint or `encoder.safetensors` describes it: ours, or the released code's."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import nn

from aavae.augmentations.pipeline import NoAugmentation, Pipeline
from aavae.datasets import Dataset
from aavae.errors import Damaged, UserError
from aavae.models import Model
from aavae.models.assemble import assemble
from aavae.models.encoders import measure_output_dim
from aavae.runtime import secrets, targets
from aavae.runtime.randomness import seed_for
from aavae.weights import checkpoint, encoder_file, released, schema, unpickle
from aavae.weights.ready import make_ready, resize_of, resize_said

DATA = ("aavae.datasets.", "aavae.augmentations.")
PORTABLE = (
    "format", "architecture", "model", "mean", "std", "image_size", "step", "steps_per_epoch", "data", "dataset",
    "config", "start",
)  # fmt: skip


class Said(TypedDict, total=False):
    """What is said of a checkpoint that leaves it open."""

    stem: str | None
    image_size: int | None
    dataset: str | None


@dataclass(frozen=True)
class Trained:
    """What is known of a trained model; of an encoder alone, its `config` is empty.

    `trust` names modules or packages, beside aavae's own, that model, images and augmentation may come from.
    """

    model: Model | nn.Module
    architecture: dict  # of the model, or of an encoder alone
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epoch: float
    method: str
    seed: int | None
    trust: str | Sequence[str]
    config: dict = field(default_factory=dict)
    step: int = 0
    data: str | None = None  # fingerprint of the images
    dataset: str | None = None  # its name
    image_size: int | None = None
    facts: dict = field(default_factory=dict)  # of an encoder alone: what its file says
    start: str | None = None  # what its encoder started from; None: random weights
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
        if lost := [key for key, value in node.items() if value == secrets.HIDDEN]:
            raise UserError(f"dataset.{lost[0]} is a secret, which a checkpoint does not hold; name the dataset= again")
        if "path" in changes and "path" not in node:
            raise UserError(f"dataset.path= is not for {node['_target_']}, which it was trained on")
        dataset = self._build(node | {k: v for k, v in changes.items() if k in (*node, "check", "on_error")}, chosen)
        self._refuse_size(dataset.image_size)
        dataset.mean, dataset.std = self.mean, self.std
        return dataset

    def untrained(self) -> nn.Module:
        """The encoder with the weights that training began with: drawn from the run's seed, as `build.model` does.

        A model may draw them anew, as a masked autoencoder does; of an encoder alone that is not known.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(self.seed, "init"))
            allowed = targets.trusting(self.trust)
            if isinstance(self.model, Model):
                return assemble(self.architecture, allowed).encoder
            return targets.component(self.architecture, allowed)

    def _refuse_size(self, size: int) -> None:
        if size == self.image_size:
            return
        encoder = self.model.encoder if isinstance(self.model, Model) else self.model
        try:
            measure_output_dim(encoder, size)
        except Exception as error:  # networks raise what they like
            raise UserError(
                f"this encoder was trained on images of {self.image_size} pixels, and cannot take those of {size}"
            ) from error

    def augmentation(self, dataset: Dataset, chosen: dict) -> Pipeline:
        """The augmentation it was trained with, or the one chosen instead; `auto` is the dataset's."""
        node = chosen or self.config.get("augmentation")
        if not node:
            return NoAugmentation()
        return self._build({k: getattr(dataset, k) if v == "auto" else v for k, v in node.items()}, bool(chosen))

    def _build(self, node: dict, chosen: bool) -> Any:
        # What the user names may be any code; what the file names may not.
        return targets.component(node, ("",) if chosen else targets.trusting(self.trust, DATA))


def load_trained(path: Path, trust: str | Sequence[str] = (), **unstated: Unpack[Said]) -> Trained:
    """What lies at `path`: a run folder, checkpoint, or `encoder.safetensors`. Raises UserError for none of these.

    `unstated` are the `stem`, `image_size` and `dataset` of a checkpoint of the released code that does not say them.
    """
    if path.is_dir() and not any(path.glob("*.pt")):
        path = path / encoder_file.ENCODER
        if not path.exists():
            raise UserError(f"{path.parent} is not a run folder: it holds no checkpoint and no {path.name}")
    if path.suffix == ".safetensors":
        return _encoder_alone(path, trust)
    model, state, path, note = _read(path, trust, schema.JUDGED, **unstated)
    config = state["config"]
    return Trained(
        model=model,
        architecture=state["architecture"],
        mean=tuple(state["mean"]),
        std=tuple(state["std"]),
        epoch=state["step"] / state["steps_per_epoch"],
        method=config["method"],
        seed=config["seed"],
        trust=trust,
        config=config,
        step=state["step"],
        data=state["data"],
        dataset=state.get("dataset"),
        image_size=state.get("image_size"),
        start=state.get("start"),
        learners=state.get("learners", {}),
        note=note or state.get("note"),
    )


def _encoder_alone(path: Path, trust: str | Sequence[str]) -> Trained:
    encoder, facts = _alone(path, trust)
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
        image_size=facts.get("image_size"),
        start=facts.get("start"),
        facts=facts,
    )


def _read(
    path: Path, trust: str | Sequence[str], needed: Sequence[str] = schema.MODEL, **said: Unpack[Said]
) -> tuple[Model, dict, Path, str | None]:
    """The model of a run folder or checkpoint, its state, its file, and what to tell the user of how it was found."""
    allowed = targets.trusting(trust)
    if path.is_dir():
        found = checkpoint.find(path, needed, lambda state, file: checkpoint.model_of(state, file, allowed))
        if found is None:
            raise UserError(f"{path} holds neither {checkpoint.LAST} nor {checkpoint.PREVIOUS}")
        model, state, path, note = found.made, found.state, found.path, found.note
    else:
        state, note = read_state(path, needed, **said), None
        model = checkpoint.model_of(state, path, allowed)
    return model, state, path, note


def read_state(
    path: Path,
    needed: Sequence[str] = (),
    *,
    stem: str | None = None,
    image_size: int | None = None,
    dataset: str | None = None,
) -> dict:
    """A checkpoint of ours, or of the released code as one of ours would say it. Raises UserError for neither."""
    try:
        return checkpoint.load(path, needed)
    except UserError:
        if not path.is_file() or not released.written(content := unpickle.read(path)):
            raise
    state = released.translate(content, path, stem=stem, image_size=image_size, dataset=dataset)
    schema.check(state, schema.CHECKPOINT, path, needed)
    return state


def portable(path: Path, trust: str | Sequence[str] = (), **said: Unpack[Said]) -> tuple[dict, str | None]:
    """The checkpoint of a run folder or file, without what only continuing the run would need, and a note on it.

    Raises UserError where there is none, or none that gives a model; `said` is as for `load_model`.
    """
    _, state, path, note = _read(_full(path), trust, schema.JUDGED, **said)
    agree(path, state, **said)
    return {k: state.get(k) for k in PORTABLE}, note


def load_model(
    path: str | Path,
    *,
    stem: str | None = None,
    image_size: int | None = None,
    dataset: str | None = None,
    trust: str | Sequence[str] = (),
) -> Model:
    """The full model of a run folder or checkpoint, ours or the released code's, in eval mode.

    `stem`, `image_size` and `dataset` (cifar10, stl10, imagenet) say what a file of the released code leaves open.
    `trust` names modules or packages of your own that parts of the model may come from, such as `["flat"]`. Raises
    UserError for a path that holds no model or a damaged one, and where what you say is not what the file says; warns
    where an older checkpoint of a run folder is used because the last one is damaged.
    """
    return _warned(path, {"stem": stem, "image_size": image_size, "dataset": dataset}, trust)[0]


def _warned(path: str | Path, said: Said, trust: str | Sequence[str]) -> tuple[Model, dict]:
    model, state, file, note = _read(_full(path), trust, **said)
    agree(file, state, **said)
    if note:
        warnings.warn(f"{path}: {note}", UserWarning, stacklevel=3)
    model.mean, model.std, model.start = tuple(state["mean"]), tuple(state["std"]), state.get("start")
    return model.eval(), state


def load_encoder(
    path: str | Path,
    *,
    stem: str | None = None,
    image_size: int | None = None,
    dataset: str | None = None,
    trust: str | Sequence[str] = (),
) -> nn.Module:
    """The encoder of a run folder, checkpoint or `encoder.safetensors`, in eval mode.

    It maps images `(B, 3, H, W)`, normalised with its `mean` and `std`, to `(B, output_dim)`. `transform` makes such a
    tensor `(3, image_size, image_size)` of a PIL image, as probes have it; `embed(images)` gives the features `(N,
    output_dim)` of a folder, a zip, or PIL images and paths. Arguments and errors are those of `load_model`.
    """
    path = Path(path).expanduser()
    said: Said = {"stem": stem, "image_size": image_size, "dataset": dataset}
    own = path / encoder_file.ENCODER
    if path.suffix == ".safetensors" or own.exists():
        encoder, facts = _alone(own if own.exists() else path, trust)
        agree(path, facts, **said)
        return make_ready(encoder, facts["mean"], facts["std"], facts.get("image_size"), resize_said(facts))
    if path.is_dir() and not any(path.glob("*.pt")):
        raise UserError(f"{path} holds neither {own.name} nor {checkpoint.LAST} nor {checkpoint.PREVIOUS}")
    model, state = _warned(path, said, trust)
    size = state.get("image_size") or state["architecture"].get("decoder", {}).get("image_size")
    resize = resize_of(state.get("config", {}).get("dataset", {}))
    return make_ready(model.encoder, model.mean, model.std, size, resize)


def _alone(path: Path, trust: str | Sequence[str]) -> tuple[nn.Module, dict]:
    try:
        return encoder_file.encoder_of(path, targets.trusting(trust))
    except Damaged as error:
        if not (last := path.with_name(checkpoint.LAST)).exists():
            raise
        # Not loaded instead: its BatchNorm statistics may be others, and the features with them.
        way_out = f"{last} holds the encoder too, with the BatchNorm statistics of training"
        raise Damaged(path, f"{error.reason}; {way_out}; the command of the run writes {path.name} again") from error


def _full(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.suffix == ".safetensors":
        raise UserError(f"{path} holds an encoder only; load it with load_encoder, or give a checkpoint")
    return path


def agree(
    path: Path, state: dict, *, stem: str | None = None, image_size: int | None = None, dataset: str | None = None
) -> None:
    """Raise UserError where what the user says of a checkpoint or encoder file is not what it says itself."""
    described = state["architecture"]
    stated = described.get("decoder", {}) | described.get("encoder", described) | state
    said = released.facts(dataset) | {"stem": stem or released.facts(dataset).get("stem"), "image_size": image_size}
    said = {k: v for k, v in said.items() if v is not None}  # one may train on smaller images than a dataset has
    for name, value in said.items():
        own = stated.get(name)
        own = tuple(own) if isinstance(own, list) else own
        if own != value:
            raise UserError(f"{path} was trained with {name} {own}, not {value}")
