"""Overrides → config: composed by Hydra, and held against what the files of conf/ know."""

import difflib
import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aavae.errors import UserError

# Launchers and sweepers that are not Hydra's own nor ours, and the extra of setup.cfg that installs them.
EXTRAS = {
    "submitit_slurm": "slurm",
    "submitit_local": "slurm",
    "joblib": "joblib",
    "ray": "ray",
    "ray_aws": "ray",
    "optuna": "optuna",
}


def compose(overrides: Sequence[str] = (), config_dir: str | None = None, primary: str = "config") -> DictConfig:
    """The config that `overrides` (Hydra's syntax) make of the `primary` one, checked against the schema.

    Raises UserError for an unknown key (also with `+` and `++`), an unknown option, a value of the wrong type, or an
    interpolation that leads nowhere.
    """
    overrides = [*overrides, *_searchpath(config_dir)]
    parsed = [o for o in parse(overrides) if not o.key_or_group.startswith(("hydra.", "hydra/"))]
    groups = tuple(o.input_line for o in parsed if _is_group(o))
    for override in parsed:
        if _is_group(override) and (override.is_add() or override.is_force_add()):
            raise UserError(f"write {override.input_line.lstrip('+')}, without the +: there is one choice a group")
        if _is_group(override) and (override.is_delete() or override.value() is None):
            raise UserError(f"{override.key_or_group} cannot be left out; choose another of its options")
    searchpath = tuple(o for o in overrides if o.startswith("hydra.searchpath="))
    schema = _compose(groups + searchpath, primary)
    for override in parsed:
        if not _is_group(override):
            _check(override, schema)
    # Checked already, so `+` and `++` need not be told apart.
    cfg = _compose(tuple(overrides), primary)
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from error
    return cfg


def parse(overrides: Sequence[str]) -> list[Override]:
    """The overrides as Hydra understands them. Raises UserError for what it does not."""
    try:
        return OverridesParser.create().parse_overrides(overrides=list(overrides))
    except HydraException as error:
        hint = "values with spaces or brackets want quotes of their own: 'dataset.path=\"a (1).zip\"'"
        raise UserError(f"cannot read the overrides: {_one_line(error)}; {hint}") from error


def _searchpath(config_dir: str | None) -> list[str]:
    if config_dir and not Path(config_dir).is_dir():
        raise UserError(f"there is no folder {config_dir} with configs")
    return [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []


def folder(overrides: Sequence[str], key: str, primary: str = "config") -> str | None:
    """Where Hydra will put a run (`hydra.run.dir`) or sweep (`hydra.sweep.dir`); None if only Hydra itself can tell."""
    try:
        return OmegaConf.select(_with_hydra(overrides, primary), key)
    except (HydraException, OmegaConfBaseException):
        return None


def hydra_node(overrides: Sequence[str], config_dir: str | None = None, primary: str = "config") -> DictConfig:
    """Hydra's own settings under these overrides. Raises UserError for what does not compose."""
    try:
        return _with_hydra([*overrides, *_searchpath(config_dir)], primary).hydra
    except MissingConfigException as error:
        raise UserError(_not_there(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from error


def _with_hydra(overrides: Sequence[str], primary: str) -> DictConfig:
    with hydra.initialize_config_module("aavae.conf", version_base="1.3"):
        return hydra.compose(primary, list(overrides), return_hydra_config=True)


@cache
def groups() -> frozenset[str]:
    """The config groups; `wandb` holds sweeps that Weights & Biases reads, not Hydra."""
    root, others = Path(str(resources.files("aavae.conf"))), ("__pycache__", "wandb")
    return frozenset(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_dir() and p.name not in others)


def _is_group(override: Override) -> bool:
    return override.key_or_group.split("@")[0] in groups()


@lru_cache(maxsize=64)
def _compose_cached(overrides: tuple[str, ...], primary: str) -> DictConfig:
    with hydra.initialize_config_module("aavae.conf", version_base="1.3"):
        return hydra.compose(primary, list(overrides))


def _compose(overrides: tuple[str, ...], primary: str) -> DictConfig:
    try:
        return _compose_cached(overrides, primary).copy()
    except MissingConfigException as error:
        raise UserError(_not_there(error)) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if absent := re.match(r"Could not override '([^']+)'", str(error)):
            raise UserError(f"{absent[1]} is not chosen here; --help lists what can be") from error
        raise UserError(_one_line(error)) from error


def _not_there(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if group in ("hydra/launcher", "hydra/sweeper") and option in EXTRAS:
        return f"{group}={option} is not installed here; pip install 'aavae[{EXTRAS[option]}]' adds it"
    if group not in groups():
        return _one_line(error)
    near = difflib.get_close_matches(option, options(group), 1)
    guess = f"; did you mean {near[0]}?" if near else "."
    return f"{group} has no option {option!r}{guess} It has {', '.join(options(group))}"


def options(group: str) -> list[str]:
    """The names one can choose from in `group`."""
    return sorted(p.name[:-5] for p in (resources.files("aavae.conf") / group).iterdir() if p.name.endswith(".yaml"))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in node:
        yield f"{prefix}{key}"
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            yield from _keys(child, f"{prefix}{key}.")


def _check(override: Override, schema: DictConfig) -> None:
    key = override.key_or_group
    parts = key.split(".")
    if "kwargs" in parts[:-1] and OmegaConf.select(schema, ".".join(parts[: parts.index("kwargs") + 1])) is not None:
        # Arguments of somebody else's constructor, who will judge them.
        if not override.is_add() and not override.is_force_add() and OmegaConf.select(schema, key) is None:
            raise UserError(f"{key} is not set so far; add it with +{override.input_line}")
        return
    known = [*_keys(schema), *groups()]
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        # A misplaced key is more often meant than a misspelt one: beta for loss.beta.
        near = [k for k in known if k.endswith(f".{key}")][:1] or near
        hint = f"; did you mean {near[0]}?" if near else "; --cfg job shows all keys"
        raise UserError(f"there is no key {key!r}{hint}")
    if override.is_delete():
        raise UserError(f"{key} cannot be deleted; set it to another value")
    if not override.is_sweep_override():
        _check_type(key, override.value(), OmegaConf.select(schema, key))


def _check_type(key: str, value, default) -> None:
    wanted = None
    if isinstance(default, bool):
        wanted = None if isinstance(value, bool) else "true or false"
    elif isinstance(default, int):
        wanted = None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    elif isinstance(default, float):
        wanted = None if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    elif OmegaConf.is_dict(default):
        wanted = None if isinstance(value, dict) else f"a group of settings; set {key}.… one by one"
    elif OmegaConf.is_list(default):
        wanted = None if isinstance(value, list) else "a list, such as [1,2]"
    interpolated = isinstance(value, str) and value.startswith("${")
    if wanted and not interpolated:
        raise UserError(f"{key} must be {wanted}, not {value!r}")


def plain(cfg: DictConfig) -> dict:
    """The resolved config as a plain dict, without Hydra's own node."""
    cfg = OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"])
    return OmegaConf.to_container(cfg, resolve=True)


def to_yaml(config: dict) -> str:
    """A plain config as YAML that OmegaConf reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(config))
