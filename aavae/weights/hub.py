"""A folder that the Hugging Face Hub takes as it is: the weights, what timm reads of them, and a model card."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from torch import nn

from aavae.errors import UserError
from aavae.loggers.screen import PROBES
from aavae.runtime import files
from aavae.weights import encoder_file, libraries, model_card
from aavae.weights.ready import resize_said
from aavae.weights.start import HUB as WEIGHTS

CONFIG, CARD = "config.json", "README.md"
UNSTATED = "unknown"  # the Hub's word for a licence that nobody has stated
DATASETS = {"cifar10": "uoft-cs/cifar10", "imagenet": "ILSVRC/imagenet-1k"}  # by our names, those of the Hub


def write(folder: Path, encoder: nn.Module, facts: dict, license: str | None) -> str:
    """Write the encoder, its config.json and its model card into a new `folder`, all or nothing; returns what to tell
    the user. `license` is that of the weights, by the Hub's name for it.

    Raises UserError where the folder cannot be written, or holds other files already.
    """
    refused = None
    try:
        libraries.check_fits("timm", encoder, facts["architecture"])
        config = timm_config(facts)
    except UserError as error:
        refused = str(error).partition("; use to=")[0]
        config = own_config(facts)
    text = card(folder.name, facts, license, loads_into_timm=refused is None)
    with _whole(folder) as new:
        encoder_file.save(new / WEIGHTS, encoder, facts | {"format": "pt", "model_card": model_card.card(facts)})
        files.write(new / CONFIG, json.dumps(config, indent=2) + "\n")
        files.write(new / CARD, text)
    ways = [f'timm.create_model("local-dir:{folder}", pretrained=True) loads it.']
    if refused:
        ways = [f"{refused[0].upper()}{refused[1:]}.", f'aavae.load_encoder("{folder / WEIGHTS}") loads it.']
    if license is None:
        ways.append(f"The card says that the licence is {UNSTATED}; license=NAME sets it, for example apache-2.0.")
    return "\n".join([model_card.card(facts), "", *ways, f"Upload it with: hf upload USER/NAME {folder}"])


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when all is written."""
    if folder.is_dir() and (others := sorted({p.name for p in folder.iterdir()} - {WEIGHTS, CONFIG, CARD})):
        raise UserError(f"{folder} holds other files ({others[0]}), which would be lost; name another folder")
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        new.mkdir()
        yield new
        if folder.is_dir():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error.strerror or error})") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


# ---- config.json --------------------------------------------------------------------------------------------------


def timm_config(facts: dict) -> dict:
    """What `timm.create_model("hf-hub:…")` reads: the architecture, its arguments, and how images are prepared.

    Raises UserError for an encoder that timm has not.
    """
    name, arguments = libraries.named("timm", facts["architecture"])
    twin, _ = libraries.twin("timm", facts["architecture"])
    known: dict = twin.pretrained_cfg  # type: ignore[assignment]
    kept = {key: known[key] for key in ("first_conv", "classifier", "fixed_input_size") if known.get(key) is not None}
    size = facts.get("image_size")
    images: dict = {
        "interpolation": "bilinear",
        "crop_mode": "center",
        "mean": list(facts["mean"]),
        "std": list(facts["std"]),
    }
    if size:
        images |= {"input_size": [3, size, size], "crop_pct": crop_pct(size, resize_said(facts) or size)}
    return {
        "architecture": name.split(".")[0],
        "num_classes": 0,
        "num_features": facts.get("output_dim"),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {"num_classes": 0, "custom_load": False, "pool_size": None, **kept, **images},
    }


def crop_pct(size: int, resize: int) -> float:
    """The part of an image resized to `resize` that its centre of `size` is; timm divides by it and rounds down."""
    part = size / resize
    return part if math.floor(size / part) == resize else size / (resize + 0.5)


def own_config(facts: dict) -> dict:
    """The same for an encoder that only `aavae.load_encoder` builds."""
    images = {key: facts.get(key) for key in ("image_size", "resize", "mean", "std")}
    return {
        "library_name": "aavae",
        "load": f"aavae.load_encoder({WEIGHTS!r}{_trust(facts)})",
        "encoder": facts["architecture"],
        "num_features": facts.get("output_dim"),
        **{key: value for key, value in images.items() if value is not None},
    }


def _trust(facts: dict) -> str:
    package = str(facts["architecture"]["_target_"]).split(".")[0]
    return "" if package == "aavae" else f", trust=({package!r},)"


# ---- README.md ----------------------------------------------------------------------------------------------------

USE = """## Use

```python
{code}
```

It returns {features} features per image. {images}

## Licence

{license}
"""
IN_TIMM = """import timm

encoder = timm.create_model("hf-hub:USER/NAME", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder))"""
IN_AAVAE = """import aavae
from huggingface_hub import hf_hub_download

encoder = aavae.load_encoder(hf_hub_download("USER/NAME", "{weights}"){trust})
features = encoder.embed(["photo.png"])"""


def card(name: str, facts: dict, license: str | None, loads_into_timm: bool) -> str:
    """The model card: YAML for the Hub, then text for people."""
    code = IN_TIMM if loads_into_timm else IN_AAVAE.format(weights=WEIGHTS, trust=_trust(facts))
    size = facts.get("image_size")
    images = (
        f"Images are resized to {resize_said(facts) or size} pixels and cropped to the central {size}." if size else ""
    )
    stated = "The publisher of these weights has not stated a licence."
    use = USE.format(
        code=code, features=facts.get("output_dim"), images=images, license=f"{license}." if license else stated
    )
    head = yaml.safe_dump(front_matter(name, facts, license, loads_into_timm), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n{model_card.card(facts)}\n\n{use}"


def front_matter(name: str, facts: dict, license: str | None, loads_into_timm: bool) -> dict:
    """What the Hub reads of a model card."""
    dataset, records, method = facts.get("dataset"), facts.get("results") or [], str(facts.get("method"))
    tags = dict.fromkeys(["image-feature-extraction", "self-supervised-learning", "aavae", method])
    found: dict = {
        "license": license or UNSTATED,
        "library_name": "timm" if loads_into_timm else "aavae",
        "pipeline_tag": "image-feature-extraction",
        "tags": [tag for tag in tags if tag.isidentifier() or "-" in tag],  # of a released file two may be possible
    }
    if dataset in DATASETS:
        found["datasets"] = [DATASETS[dataset]]
    if records:
        found["metrics"] = ["accuracy"]
        found["model-index"] = [{"name": name, "results": [_result(dataset, r) for r in records]}]
    return found


def _result(dataset: str | None, record: dict) -> dict:
    measured = f"{PROBES.get(record['probe'], record['probe'])} on frozen features: {record['protocol']}"
    return {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"type": DATASETS.get(str(dataset), str(dataset)), "name": str(dataset), "split": "test"},
        "metrics": [{"type": "accuracy", "value": round(record["value"], 6), "name": measured}],
    }
