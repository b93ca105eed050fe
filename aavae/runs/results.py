"""The file `results.json`: what the probes found, as records."""

import json
import re
from pathlib import Path
from typing import SupportsFloat

from aavae.errors import UserError
from aavae.runtime import files, seals

RESULTS = "results.json"


def read_results(folder: Path) -> list[dict]:
    """The records of a folder's results.json, none if there is none. Raises UserError if it is damaged."""
    path = folder / RESULTS
    if not path.exists():
        return []
    try:
        records = files.parsed(seals.unseal_json(path.read_bytes()))
        names = ("probe", "feature", "split", "metric")
        if strange := [r for r in records if not all(isinstance(r[key], str) for key in names)]:
            raise ValueError(f"{strange[0]} is no record")
        return [r | {"value": float(r["value"]), "epoch": r["epoch"]} for r in records]
    except (OSError, ValueError, KeyError, TypeError) as error:  # ValueError: no JSON, or no text
        raise UserError(f"{path} is damaged ({error}); delete it and evaluate again") from error


def write_results(folder: Path, records: list[dict]) -> None:
    """Write the records of a folder. Raises UserError where they cannot be written."""
    files.write(folder / RESULTS, seals.seal_json(json.dumps(records, indent=1)))


def name_of(r: dict) -> str:
    """The name of a record in logs: probe/feature/split/metric."""
    return f"{r['probe']}/{r['feature']}/{r['split']}/{r['metric']}"


def measured_by(r: dict) -> tuple[str, object]:
    """How a record was measured, the same for all seeds: its protocol without the seed and what was chosen on
    validation images, and on how many images."""
    return re.sub(r"weight decay \S+ chosen|seed \d+", "", str(r.get("protocol"))), r.get("n")


def record(
    probe: str, feature: str, split: str, value: SupportsFloat, n: int, protocol: str, metric: str = "accuracy"
) -> dict:
    """One result; `n` is the number of images it was measured on."""
    return {
        "probe": probe,
        "feature": feature,
        "split": split,
        "metric": metric,
        "value": float(value),
        "n": n,
        "protocol": protocol,
    }
