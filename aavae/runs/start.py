"""What the encoder of a run started from, by its config, and how tables mark a run that did not start at random."""

from collections.abc import Mapping

KEYS = ("encoder.weights", "encoder.pretrained")  # which say it
MARK = "‡"
NOTE = f"{MARK}: training did not start from random weights."


def start_of(config: Mapping[str, object]) -> str | None:
    """What the encoder started from, by the dotted keys of a config; None for random weights."""
    weights, pretrained = (config.get(key) for key in KEYS)
    if weights:
        return str(weights)
    return f"pretrained {config.get('encoder.name', 'weights')}" if pretrained else None


def marked(name: str, start: object) -> str:
    """The name of a row or column, with the mark where training started from something."""
    return f"{name} {MARK}" if start else name
