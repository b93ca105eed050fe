"""Which groups the chosen model takes, and what that does to a config: parts it has no use for, and its name."""

from functools import cache

from hydra.core.override_parser.types import Override

from aavae.config.sources import SHIPPED

PARTS = ("decoder", "loss")  # that a model may do without


def _takes(config: dict) -> list | None:
    """What the chosen model says that it takes; None where it says nothing."""
    model = config.get("model")
    takes = model.get("takes") if isinstance(model, dict) else None
    return takes if isinstance(takes, list) else None  # the schema says what is wrong with another


def unused(config: dict) -> list[str]:
    """The parts that the chosen model says not to take, by `model.takes`; none where it says nothing."""
    takes = _takes(config)
    return [] if takes is None else [part for part in PARTS if part in config and part not in takes]


def asks_for(override: Override, part: str) -> bool:
    """Whether an override chooses a part, or sets something of it."""
    chosen = override.key_or_group == part and override.value() not in ("none", None)
    return chosen or override.key_or_group.startswith(f"{part}.")


def settled(config: dict) -> dict:
    """The plain config without the parts that are not used, and with a name that is the model's.

    A model that no method has chosen is called by its class: the name of a method for autoencoders would belie it.
    """
    model = config.get("model")
    named = str(config.get("method")) in _of_autoencoders()
    if named and isinstance(model, dict) and model and "loss" not in (_takes(config) or ()):
        config = config | {"method": str(model.get("_target_")).rpartition(".")[2].lower()}
    return config | {part: {"_target_": None} for part in unused(config)}


@cache
def _of_autoencoders() -> frozenset[str]:
    """The shipped methods that choose a loss for the autoencoder, and no model."""
    files = (SHIPPED / "method").glob("*.yaml")
    return frozenset(path.stem for path in files if "override /model" not in path.read_text(encoding="utf-8"))
