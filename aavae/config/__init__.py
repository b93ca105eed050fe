"""Overrides → config: composed by Hydra, and held against what the shipped files know."""

import dataclasses
import json
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from aavae.config import hints, sources, taken
from aavae.config.schema import Schema, multiple
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


@dataclasses.dataclass(frozen=True)
class Base:
    """What groups alone make: the config, the user's own files in it with what each sets, and what is known of its
    keys."""

    cfg: DictConfig
    files: list[tuple[Path, DictConfig]]
    schema: Schema

    @cached_property
    def _pickled(self) -> bytes:
        return pickle.dumps(self.cfg)

    def copy(self) -> DictConfig:
        """The config, to be changed; in a seventh of the time that OmegaConf takes."""
        return pickle.loads(self._pickled)


def compose(overrides: Sequence[str] = (), config_dir: str | None = None, primary: str = "config") -> DictConfig:
    """The config that `overrides` (Hydra's syntax) make of the `primary` one, checked against the shipped files.

    The user's files, in `config_dir` or a `hydra.searchpath=`, are held against the same keys as `overrides`. Raises
    UserError for an unknown key (also with `+` and `++`), an unknown option, a value of the wrong type, or an
    interpolation that leads nowhere.
    """
    parsed = parse(overrides)
    folders = sources.own_folders(config_dir, parsed)
    base = _base(parsed, config_dir, primary, folders)
    cfg, schema = base.copy(), base.schema
    values = [o for o in parsed if not (_is_hydras(o) or _is_group(o, folders))]
    if targets := [o for o in values if o.key_or_group.endswith("._target_")]:
        _apply(targets, cfg)
        with _sentences():  # of interpolations in them
            schema = Schema(cfg, primary, schema.own)
    for override in values:
        _refuse(override, schema)
    _apply(values, cfg)
    if any(not isinstance(schema.find(o.key_or_group), list) for o in values):  # which may hold components
        schema = Schema(cfg, primary, schema.own)
    try:
        config: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from error
    for part in taken.unused(config):
        if asking := [o for o in parsed if taken.asks_for(o, part)]:
            line = _line(asking[0])
            raise UserError(f"{config['method']} has no {part} to choose; leave out {line}, or choose another method=")
    for key, wrong in schema.check(config):
        typed = any(o.key_or_group == key or key.startswith(f"{o.key_or_group}.") for o in values)
        raise UserError(wrong if typed else f"{_origin(key, base)}{wrong}")
    return cfg


def parse(overrides: Sequence[str]) -> list[Override]:
    """The overrides as Hydra understands them. Raises UserError for what it does not."""
    parser = OverridesParser.create()

    def reads(lines: Sequence[str]) -> list[Override] | None:
        try:
            return parser.parse_overrides(overrides=list(lines))
        except (HydraException, ValueError, RecursionError):
            return None

    try:
        return [_parsed(override) for override in overrides]
    except RecursionError as error:
        raise UserError("the overrides are nested too deep") from error
    except ValueError as error:  # of a whole number that is thousands of digits long
        raise UserError(f"cannot read the overrides: {_one_line(error).partition(';')[0]}") from error
    except HydraException as error:
        if words := [o for o in overrides if "=" not in o and not o.startswith("~")]:
            raise UserError(f"{words[0]!r} is not a setting: settings are written key=value; see --help") from error
        hint = next((h for o in overrides if reads([o]) is None and (h := hints.requoted(o, reads))), "")
        hint = hint.replace("\n", "\\n")
        raise UserError(hint or f"cannot read the overrides: {_one_line(error)}") from error


@lru_cache(maxsize=4096)
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_overrides([override])[0]


def for_hydra(overrides: Sequence[str], config_dir: str | None = None, primary: str = "config") -> list[str]:
    """The overrides, checked already, as Hydra itself wants them.

    With `++` where a key is new to the files chosen, or to those that are chosen when nothing is swept.
    """
    parsed = parse(overrides)
    folders = sources.own_folders(config_dir, parsed)
    once = [o for o in parsed if not (o.is_sweep_override() and _is_hydras(o))]
    first = [next(iter(parse([line]))) for line in (_first(o) for o in once)]
    bases = [_base(first, config_dir, primary, folders).cfg]
    if any(o.is_sweep_override() for o in once):  # Hydra composes a config without what is swept, too
        bases.append(_base([o for o in once if not o.is_sweep_override()], config_dir, primary, folders).cfg)
    found = []
    for override in parsed:
        line = _line(override)
        if not (_is_hydras(override) or _is_group(override, folders) or override.is_delete()):
            grows = isinstance(override.value(), dict) or not all(_holds(base, override.key_or_group) for base in bases)
            line = "+" * 2 * grows + line.lstrip("+") if grows or line.startswith("+") else line
        found.append(line)
    return found


def _line(override: Override) -> str:
    assert override.input_line is not None  # it was parsed from a line
    return override.input_line


def _first(override: Override) -> str:
    if override.is_sweep_override() and override.is_discrete_sweep():
        return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()), 'null')}"
    return _line(override)


def _holds(cfg: DictConfig, key: str) -> bool:
    node: object = cfg
    for part in key.split("."):
        if not isinstance(node, DictConfig) or node._is_none() or part not in node.keys():  # noqa: SIM118 (`in` hides what is missing)
            return False
        node = node._get_node(part)
    return True


# ---- Hydra's own settings -----------------------------------------------------------------------------------------


def folder(
    overrides: Sequence[str], key: str, primary: str = "config", config_dir: str | None = None, name: str = "app"
) -> str:
    """Where Hydra will put a run (`hydra.run.dir`) or sweep (`hydra.sweep.dir`) of the job `name`, interpolated once
    and for all. Raises UserError if only Hydra itself could tell."""
    typed = [o.value() for o in parse(overrides) if o.key_or_group == key]
    if typed and isinstance(typed[-1], str) and typed[-1] not in ("", "???") and "$" not in typed[-1]:
        return typed[-1]  # without composing: a tenth of the time that a command takes to begin
    job = HydraConfig.instance()
    before = job.cfg
    try:
        cfg = _with_hydra(overrides, config_dir, primary, name)
        job.set_config(cfg)  # for ${hydra:…}
        return str(OmegaConf.select(cfg, key, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise UserError(f"{key} is not known before a job has started: {_one_line(error)}") from error
    finally:
        job.cfg = before


def hydra_node(overrides: Sequence[str], config_dir: str | None = None, primary: str = "config") -> DictConfig:
    """Hydra's own settings under these overrides. Raises UserError for what does not compose."""
    return _with_hydra(overrides, config_dir, primary).hydra


def _with_hydra(overrides: Sequence[str], config_dir: str | None, primary: str, name: str = "app") -> DictConfig:
    folders, lines = sources.own_folders(config_dir), for_hydra(overrides, config_dir, primary)
    with _sentences(folders), sources.loader(config_dir, name):
        return hydra.compose(primary, lines, return_hydra_config=True)


def _refuse_ways(cfg: DictConfig) -> None:
    if cfg.hydra.mode is not None:
        raise UserError(f"hydra.mode={cfg.hydra.mode.name} cannot be set; -m sweeps, and without it there is one run")
    if cfg.hydra.job.chdir:
        raise UserError("hydra.job.chdir=true is not supported: paths are those of the folder a command is typed in")


# ---- Groups and values --------------------------------------------------------------------------------------------


def _is_hydras(override: Override) -> bool:
    return override.key_or_group.startswith(("hydra.", "hydra/"))


def _is_group(override: Override, folders: Sequence[Path] = ()) -> bool:
    return override.key_or_group.split("@")[0] in sources.groups(folders)


def _base(parsed: list[Override], config_dir: str | None, primary: str, folders: tuple[Path, ...]) -> Base:
    chosen = [o for o in parsed if _is_group(o, folders) and not _is_hydras(o)]
    for override in chosen:
        _refuse_choice(override, primary, folders)
    for override in parsed:
        if override.key_or_group.startswith("hydra/") and not isinstance(override.value(), str | None):
            raise UserError(f"{override.key_or_group} takes one option, which {override.input_line} does not name")
    lines = tuple(o.input_line for o in parsed if o in chosen or _is_hydras(o))
    with _sentences(folders):
        return _read(lines, config_dir, primary, folders) if folders else _read_shipped(lines, primary)


@sources.remembered
def _read(lines: tuple[str, ...], config_dir: str | None, primary: str, folders: tuple[Path, ...]) -> Base:
    with sources.loader(config_dir) as loader:
        files = sources.own_files(loader, primary, lines, folders) if folders else []
        cfg = hydra.compose(primary, list(lines), return_hydra_config=True)
    _refuse_ways(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return Base(cfg, files, Schema(cfg, primary, sources.groups(folders) - sources.groups()))


@lru_cache(maxsize=64)
def _read_shipped(lines: tuple[str, ...], primary: str) -> Base:
    return _read(lines, None, primary, ())


def _refuse_choice(override: Override, primary: str, folders: Sequence[Path]) -> None:
    group, own = override.key_or_group, override.key_or_group.split("@")[0] not in sources.groups()
    if (override.is_add() or override.is_force_add()) and not own:
        raise UserError(f"write {_line(override).lstrip('+')}, without the +: there is one choice a group")
    if override.is_delete() or (value := override.value()) is None:
        raise UserError(f"{group} cannot be left out; choose another of its options")
    if override.is_sweep_override():
        return _refuse_several(override)
    several = value if isinstance(value, list) else [value]
    if strange := [v for v in several if not isinstance(v, str)]:
        named = ", ".join(sources.options(group, folders))
        raise UserError(f"{group} has no option {json.dumps(strange[0], default=str)}. It has {named}")
    if isinstance(value, list) and group not in multiple(primary) and not own:
        example = next(iter(value), None) or sources.options(group)[0]
        raise UserError(f"{group} takes one option, not a list: {group}={example}")
    return None


def _refuse_several(override: Override) -> None:
    key, given = override.key_or_group, _line(override).partition("=")[2]
    as_list = f"a list is written {key}=[{given}]" if "(" not in given else "a text is quoted"
    raise UserError(f"{override.input_line} is several values: -m runs them all, and {as_list}")


def _refuse(override: Override, schema: Schema) -> None:
    if override.is_sweep_override():
        _refuse_several(override)
    if schema.find(override.key_or_group) is not None and override.is_delete():
        raise UserError(f"{override.key_or_group} cannot be deleted; set it to another value")


def _apply(overrides: list[Override], cfg: DictConfig) -> None:
    """Set values as Hydra does; a key that was found good need not be there already."""
    added = [o if o.is_delete() else dataclasses.replace(o, type=OverrideType.FORCE_ADD) for o in overrides]
    with _sentences():
        ConfigLoaderImpl._apply_overrides_to_config(added, cfg)


def _origin(key: str, base: Base) -> str:
    """The user's file that has set `key` last, as the beginning of a sentence."""
    for path, config in reversed(base.files):
        if _holds(config, key):
            return f"{path}: "
    group = [path for path, _ in base.files if path.parent.name == key.split(".")[0]]  # otherwise the file of its group
    return f"{group[-1]}: " if group else ""


# ---- Hydra's errors -----------------------------------------------------------------------------------------------


@contextmanager
def _sentences(folders: Sequence[Path] = ()) -> Iterator[None]:
    """What Hydra, OmegaConf and YAML raise, as UserError."""
    try:
        yield
    except MissingConfigException as error:
        raise UserError(_not_there(error, folders)) from error
    except RecursionError as error:
        raise UserError("a config is nested too deep, or leads back to itself") from error
    except AssertionError as error:  # Hydra's, for an entry of a defaults list that has no name, say
        places = " or ".join(map(str, folders)) or "aavae"
        raise UserError(
            f"a YAML file of {places} has a defaults list that Hydra cannot read; look at its entries"
        ) from error
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError) as error:
        if absent := re.match(r"Could not override '([^']+)'", str(error)):
            group = absent[1].split("@")[0]
            if group.startswith("hydra."):
                raise UserError(f"there is no key {group!r}; --cfg hydra shows all keys of Hydra") from error
            if group in sources.groups(folders) - sources.groups():
                raise UserError(f"{group} is a group of your own; choose an option with +{group}=") from error
            raise UserError(f"{absent[1]} is not chosen here; --help lists what can be") from error
        raise UserError(_one_line(error.__cause__ or error if not str(error) else error)) from error


def _not_there(error: MissingConfigException, folders: Sequence[Path]) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if group in ("hydra/launcher", "hydra/sweeper") and option in EXTRAS:
        return f"{group}={option} is not installed here; pip install 'aavae[{EXTRAS[option]}]' adds it"
    if group not in sources.groups(folders):
        return _one_line(error)
    there = sources.options(group, folders)
    near = hints.nearest(option, there)
    guess = f"; did you mean {near}?" if near else "."
    return f"{group} has no option {option!r}{guess} It has {', '.join(there)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def plain(cfg: DictConfig) -> dict:
    """The resolved config as a plain dict, without Hydra's own node, and without parts that the model does not take: a
    run is the same whichever decoder a preset chose for a model that has none. A model of its own, which no method has
    chosen, is called by its class."""
    if "hydra" in cfg:
        keys: list[Any] = [k for k in cfg if k != "hydra"]
        cfg = OmegaConf.masked_copy(cfg, keys)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    return taken.settled(config)


def to_yaml(config: dict) -> str:
    """A plain config as YAML that OmegaConf reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(config))
