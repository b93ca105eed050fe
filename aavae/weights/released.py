"""The released code's Lightning checkpoints, as checkpoints of ours: keys, architecture, facts of the images.

What such a file holds was read from the released code (gridai-labs/aavae): a `state_dict` with the keys that ours has,
and `hyper_parameters`, the arguments of its `vae.py` or `ae.py`.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from aavae.datasets import Dataset
from aavae.datasets.downloads import CIFAR10, STL10
from aavae.datasets.folder import ImageNet
from aavae.errors import UserError
from aavae.weights import unpickle
from aavae.weights.checkpoint import FORMAT

# The dataset decides the stem; where a file names no dataset, the stem decides which it was.
DATASETS: dict[str, type[Dataset]] = {d.name: d for d in (CIFAR10, STL10, ImageNet)}
# Heads that its callbacks hang onto the model while it trains.
CALLBACKS = ("online_finetuner.", "non_linear_evaluator.")
RENAMED = {  # of ae.py
    "projection.projection_head.0.": "projection.first_layer.0.",
    "projection.projection_head.1.": "projection.first_layer.1.",
    "projection.projection_head.3.": "projection.mu.",
}


def written(content: Any) -> bool:
    """Whether the content of a file looks like a checkpoint of Lightning's."""
    return isinstance(content, dict) and isinstance(content.get("state_dict"), dict)


def facts(dataset: str | None) -> dict:
    """Stem, image size, mean and std that go with a dataset. Raises UserError for one the released code has not."""
    if dataset is None:
        return {}
    if dataset not in DATASETS:
        raise UserError(f"dataset= must be one of {', '.join(DATASETS)}, not {dataset!r}")
    return {name: getattr(DATASETS[dataset], name) for name in ("stem", "image_size", "mean", "std")}


def name_of(target: str | None) -> str | None:
    """The name of the dataset whose `_target_` that is, None for one the released code has not."""
    return next((name for name in DATASETS if _target(name) == target), None)


def _target(dataset: str) -> str:
    return f"{DATASETS[dataset].__module__}.{DATASETS[dataset].__name__}"


def translate(content: dict, path: Path, *, stem: str | None, image_size: int | None, dataset: str | None) -> dict:
    """The checkpoint of ours that says the same; `stem`, `image_size`, `dataset` are used where the file is silent.

    Raises UserError where it holds no such model, and where nothing says what it was trained on.
    """
    given = {k: v for k, v in unpickle.contents(content.get("hyper_parameters")).items() if _plain(v)}
    weights = _weights(unpickle.contents(content["state_dict"]))
    try:
        first, encoder, decoder = weights["encoder.conv1.weight"], _part(weights, "encoder"), _part(weights, "decoder")
        decoder["head_channels"] = len(weights["decoder.conv2.weight"])
        latent_dim, variational = len(weights["projection.mu.weight"]), "projection.logvar.weight" in weights
    except KeyError as missing:
        raise UserError(f"{path} holds no model of the released code: it has no {missing.args[0]}") from missing
    except (TypeError, IndexError) as error:
        raise UserError(f"{path} holds no model of the released code: its tensors have other shapes") from error
    dataset, note = _dataset(path, first.shape[-1], given, stem, dataset)
    known = facts(dataset)
    size = given.get("input_height", image_size or known["image_size"])
    epochs, step = (v if isinstance(v := content.get(k), int) else 0 for k in ("epoch", "global_step"))
    augmented = given.get("denoising", True)
    return {
        "format": FORMAT,
        "architecture": {
            "encoder": {"_target_": "aavae.models.encoders.resnet.resnet", **encoder, "stem": known["stem"]},
            "decoder": {
                "_target_": "aavae.models.decoders.resnet.ResNetDecoder",
                **decoder,
                "stem": known["stem"],
                "image_size": size,
            },
            "latent_dim": latent_dim,
            "variational": variational,
            **({"learn_scale": bool(given.get("learn_scale", False))} if variational else {}),
        },
        "model": weights,
        "mean": list(known["mean"]),
        "std": list(known["std"]),
        "image_size": size,
        "step": step,
        "steps_per_epoch": step / epochs if step and epochs else 1,
        "data": None,
        "note": note,
        "dataset": dataset,
        "config": {
            "method": _method(variational, given.get("denoising")),
            "seed": None,  # of another program's draws
            "dataset": {
                "_target_": _target(dataset),
                "data_dir": "data",
                "path": None,
                **({"image_size": size} if dataset == ImageNet.name else {}),
            },
            "augmentation": {"_target_": "aavae.augmentations.simclr.SimCLRViews", "strength": "auto", "blur_p": "auto"}
            if augmented
            else {},
            "released": given,
        },
    }


def _plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _weights(state: dict) -> dict[str, Tensor]:
    weights = {}
    for key, value in state.items():
        if not isinstance(key, str) or key.startswith(CALLBACKS) or not isinstance(value, Tensor):
            continue
        for old, new in RENAMED.items():
            key = new + key.removeprefix(old) if key.startswith(old) else key
        weights[key] = value
    return weights


def _part(weights: dict[str, Tensor], part: str) -> dict:
    """Block, depths and width of an encoder or decoder, from its keys and shapes."""
    stages = [{key.split(".")[2] for key in weights if key.startswith(f"{part}.layer{i}.")} for i in (1, 2, 3, 4)]
    narrowest = "encoder.conv1.weight" if part == "encoder" else "decoder.layer4.0.conv1.weight"
    return {
        "block": "bottleneck" if f"{part}.layer1.0.conv3.weight" in weights else "basic",
        "layers": [len(blocks) for blocks in stages],
        "channels": len(weights[narrowest]),
    }


def _dataset(path: Path, kernel: int, given: dict, stem: str | None, dataset: str | None) -> tuple[str, str | None]:
    """What the model was trained on: what its first kernel and hyper-parameters leave, else what the caller says.

    With it comes a note where it is only the caller who says so.
    """

    def possible(name: str) -> bool:
        its = DATASETS[name].stem
        if (kernel == 3) != (its == "cifar"):
            return False
        if given.get("dataset") in DATASETS:
            return given["dataset"] == name
        # Without a max-pool it is STL-10's stem, with one ImageNet's; nothing in the weights shows it.
        return given.get("remove_first_maxpool", its != "imagenet") == (its != "imagenet")

    def said(name: str) -> bool:
        return dataset in (None, name) and stem in (None, DATASETS[name].stem)

    facts(dataset)  # is a name at all
    named = given.get("dataset")
    if named is not None and named not in DATASETS and dataset is None:
        raise UserError(f"{path} was trained on {named!r}; say with dataset= whose stem, mean and std it has")
    left = [name for name in DATASETS if possible(name)]
    if not left:
        its = given.get("dataset") or "a max-pool after it"
        raise UserError(f"{path} has a first convolution of {kernel}×{kernel}, which does not fit {its}")
    note = None
    if len(left) > 1 or named not in (None, *DATASETS):
        left = [name for name in left if said(name)]
        note = f"it does not say that it was trained on {dataset or 'these images'}; you do"
    if len(left) != 1:
        raise UserError(
            f"{path} does not say whether it was trained on STL-10 or ImageNet, whose stems look alike; "
            "say dataset=stl10 or dataset=imagenet"
        )
    return left[0], note


def _method(variational: bool, denoising: bool | None) -> str:
    plain, augmented = ("vae", "aavae") if variational else ("ae", "aaae")
    return f"{augmented} or {plain}" if denoising is None else (augmented if denoising else plain)
