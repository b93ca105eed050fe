"""What a file of weights says about itself: facts for programs, a model card for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from aavae import __version__
from aavae.models import Model
from aavae.runs.results import read_results
from aavae.runtime.words import epochs
from aavae.weights.load import Trained
from aavae.weights.ready import resize_of


def facts_of(trained: Trained) -> tuple[nn.Module, dict]:
    """The encoder of a trained model, and the facts that go with it into a file."""
    if not isinstance(trained.model, Model):
        return trained.model, dict(trained.facts)
    encoder = trained.model.encoder
    recalibrated = trained.config.get("trainer", {}).get("clean_pass") == "off"  # for the probes, not in the checkpoint
    statistics = "running, of training"
    statistics += "; accuracies are of statistics recalibrated on clean training images" if recalibrated else ""
    t = trained
    said: dict[str, Any] = {"mean": t.mean, "std": t.std, "image_size": t.image_size, "dataset": t.dataset}
    said |= {"resize": resize_of(t.config.get("dataset", {})) or t.image_size}
    said |= {"method": t.method, "data": t.data, "epochs": t.epoch, "seed": t.seed, "start": t.start}
    return encoder, facts(encoder, t.architecture["encoder"], statistics, **said)


def facts(
    encoder: nn.Module,
    architecture: dict,
    statistics: str,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int | None,
    resize: int | None,
    method: str,
    dataset: str | None,
    data: str | None,
    epochs: float,
    seed: int | None,
    start: str | None,
) -> dict:
    """What a file says of an encoder: how it is built, what images it takes, how it was trained; `statistics` says
    which its BatchNorm has, `start` what it started from (None: random weights)."""
    return {
        "architecture": architecture,
        "output_dim": encoder.output_dim,
        "mean": list(mean),
        "std": list(std),
        "image_size": image_size,
        "resize": resize,
        "batchnorm_statistics": statistics,
        "method": method,
        "dataset": dataset,
        "data": data,
        "epochs": epochs,
        "seed": seed,
        "start": start,
        "aavae_version": __version__,
    }


def accuracies(source: Path, epochs: float) -> list[dict]:
    """The test accuracies of h after that many epochs, from the run folder or the evaluation that `source` has."""
    folders = [source] if source.is_dir() else [source.parent / f"evaluate_{source.stem}"]
    if (source.parent / "config.yaml").exists():  # a file of a run folder
        folders.append(source.parent)
    records = [r for folder in folders for r in read_results(folder) if r["epoch"] == epochs]
    measured = [r for r in records if (r["feature"], r["split"], r["metric"]) == ("h", "test", "accuracy")]
    return [{k: r[k] for k in ("probe", "value", "n", "protocol")} for r in measured]


def card(facts: dict) -> str:
    """The facts as Markdown."""
    architecture = dict(facts["architecture"])
    built = architecture.pop("_target_").rpartition(".")[2]
    settings = ", ".join(f"{k} {v}" for k, v in architecture.items() if v is not None)
    seed = "" if facts.get("seed") is None else f", seed {facts['seed']}"
    numbers = [" (".join((", ".join(f"{v:.4f}" for v in facts[k]), f"{k})")) for k in ("mean", "std")]
    start = facts.get("start") or (None if facts.get("seed") is None else "random weights")  # which a seed gives
    measured = [f"- {r['probe']}: {100 * r['value']:.2f} % ({r['protocol']})" for r in facts.get("results") or []]
    return "\n".join(
        [
            f"# Encoder of {facts.get('method', 'an unknown method')}",
            "",
            f"- trained on {facts.get('dataset') or 'unknown images'}, {epochs(facts.get('epochs', 0))}{seed}",
            *([f"- started from {start}"] if start else []),
            f"- {built}: {settings}; images ({facts.get('image_size')} pixels) to {facts.get('output_dim')} features",
            f"- normalisation: images in [0, 1], then {' and '.join(numbers)} per channel",
            f"- BatchNorm statistics: {facts.get('batchnorm_statistics', 'unknown')}",
            "",
            "Test accuracy of h:" if measured else "Test accuracy of h: not measured.",
            *measured,
        ]
    )
