"""`config.yaml` of a run folder, read in milliseconds whatever somebody has put there."""

import contextlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

CONFIG = "config.yaml"
LONG = re.compile(r"\d{300}")  # more than a float holds


_Quickest: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Quickest):
    # OmegaConf, which wrote these files, takes twenty times as long: most of a minute for a thousand of them.
    pass


# As OmegaConf has it, 1e-3 is a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@lru_cache(maxsize=4096)
def _block(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _in_blocks(text: str) -> Any:
    """What the text says, each setting of the top level read apart: those of many runs are equal, and are read once."""
    with contextlib.suppress(yaml.YAMLError):
        blocks = [_block(part) for part in re.split(r"\n(?=[^\s#-])", text)]
        if all(isinstance(block, dict) for block in blocks):
            return {key: value for block in blocks for key, value in block.items()}
    return yaml.load(text, Loader=_Loader)  # not as a run writes it


def asked_for(probes: dict, among: dict) -> bool:
    """Whether all `probes` are `among` others, with the same settings."""
    return all(name in among and among[name] == settings for name, settings in probes.items())


def read_config(folder: Path) -> dict:
    """The config of the run in `folder`, empty if it has none.

    It is only to be read: parts of it may be shared with other configs. Raises ValueError for what no run has written:
    something else than settings, YAML aliases (a few lines of which can stand for billions of values), or very deep
    nesting.
    """
    path = folder / CONFIG
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    try:
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader)):
            raise ValueError(f"{CONFIG} has YAML aliases")
        config = _in_blocks(text)
        said = json.dumps(config, default=str)  # what is nested too deep for this cannot be shown either
        if LONG.search(said):
            raise ValueError(f"{CONFIG} has a number of hundreds of digits")
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{CONFIG}: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} holds no settings")
    return config
