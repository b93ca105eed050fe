"""What Weights & Biases has written offline, read back from its own file."""

import json
from pathlib import Path


def records(folder: Path) -> list:
    """The records of the one `.wandb` file below `folder`: LevelDB's log format around W&B's protocol buffers."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its service may still be writing after a run's end
    (path,) = (Path(folder) / "wandb").glob("*run-*/*.wandb")
    data, at, whole, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        end = at + 7 + int.from_bytes(data[at + 4 : at + 6], "little")
        whole, kind, at = whole + data[at + 7 : end], data[at + 6], end
        if kind in (1, 4):  # the whole record, or its last part
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def of_kind(folder: Path, kind: str) -> list:
    """The records of one kind: history, run, summary, exit, …"""
    return [getattr(r, kind) for r in records(folder) if r.WhichOneof("record_type") == kind]


def values(items) -> dict:
    """Names and values of items of a config, a summary or a line of history."""
    return {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in items}


def history(folder: Path) -> list[dict]:
    """Every line that was logged."""
    return [values(row.item) for row in of_kind(folder, "history")]


def panels(folder: Path) -> dict[str, list[int]]:
    """The steps at which each image panel was logged."""
    found: dict[str, list[int]] = {}
    for row in history(folder):
        for key in row:
            if key.endswith("/_type") and row[key] == "image-file":
                found.setdefault(key.removesuffix("/_type"), []).append(row["step"])
    return found


def summary(folder: Path) -> dict:
    """The run's summary."""
    return {name: value for s in of_kind(folder, "summary") for name, value in values(s.update).items()}


def config(folder: Path) -> dict:
    """The run's config."""
    return values(of_kind(folder, "run")[0].config.update)


def artifacts(folder: Path, kind: str = "model") -> list:
    """The artifacts of a kind that were logged, in order."""
    return [artifact for artifact in of_kind(folder, "artifact") if artifact.type == kind]


def exit_code(folder: Path) -> int:
    """How the run has ended."""
    (ended,) = of_kind(folder, "exit")
    return ended.exit_code
