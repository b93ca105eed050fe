"""Where configs come from: the files of conf/, and folders of the user's (`--config-dir`, `hydra.searchpath=`)."""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import cache, wraps
from importlib import resources
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf import __version__ as omegaconf_version

from aavae.errors import UserError

SHIPPED = Path(str(resources.files("aavae.conf")))
# How Hydra behaves: as 1.3 did. From 1.4 on it warns where that is said, and has no other way.
BASE: dict[str, str] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}
OTHERS = ("__pycache__", "wandb")  # wandb/ holds sweeps that Weights & Biases reads, not Hydra


_memory: ContextVar[dict | None] = ContextVar("memory", default=None)


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """While it lasts, the user's files are read once, for thousands of configs that are made of them."""
    before = _memory.set({})
    try:
        yield
    finally:
        _memory.reset(before)


def remembered(function: Callable) -> Callable:
    """A function of the user's files that is asked once for the same arguments while they are `unchanged`."""

    @wraps(function)
    def known(*arguments):
        if (memory := _memory.get()) is None:
            return function(*arguments)
        key = (function, *arguments)
        if key not in memory:
            memory[key] = function(*arguments)
        return memory[key]

    return known


def register(name: str, resolver: Callable) -> None:
    """Let `${name:…}` in a config be what `resolver` returns."""
    omegaconf: Any = OmegaConf
    older = omegaconf_version.startswith("2.3.")  # where the newer name is that of another function
    (omegaconf.register_new_resolver if older else omegaconf.register_resolver)(name, resolver, replace=True)


@contextlib.contextmanager
def loader(config_dir: str | None = None, job_name: str = "app") -> Iterator:
    """Hydra's config loader over conf/ and `config_dir`, in the order of its command line; `hydra.compose` uses it."""
    with hydra.initialize_config_module("aavae.conf", job_name=job_name, **BASE):
        loader: Any = GlobalHydra.instance().config_loader()
        if config_dir:
            path = loader.get_search_path()
            path.prepend("command-line", f"file://{Path(config_dir).absolute()}", SearchPathQuery(provider="schema"))
            loader.repository.initialize_sources(path)
        yield loader


def own_folders(config_dir: str | None, overrides: Sequence[Override] = ()) -> tuple[Path, ...]:
    """The user's folders of configs. Raises UserError for one that is not there."""
    given = [config_dir] if config_dir is not None else []
    for override in overrides:
        paths = override.value() if override.key_or_group == "hydra.searchpath" else None
        if isinstance(paths, list):
            given += [str(path) for path in paths]
    folders = []
    for path in given:
        folder = Path(path.removeprefix("file://"))
        if path.startswith("pkg://"):
            with contextlib.suppress(ImportError):
                folder = Path(str(resources.files(importlib.import_module(path.removeprefix("pkg://")))))
        if not path or not folder.is_dir():
            raise UserError(f"there is no folder {path} with configs")
        folders.append(folder)
    return tuple(folders)


def groups(folders: Sequence[Path] = ()) -> frozenset[str]:
    """The config groups; with `folders`, those that the user has made too."""
    return frozenset().union(_shipped_groups(), *map(_own_groups, folders))


@cache
def _shipped_groups() -> frozenset[str]:
    found = (p for p in SHIPPED.rglob("*") if p.is_dir() and p.name not in OTHERS and any(p.glob("*.yaml")))
    return frozenset(p.relative_to(SHIPPED).as_posix() for p in found)


@remembered
def _own_groups(root: Path) -> frozenset[str]:
    files = (p for depth in ("*/*.yaml", "*/*/*.yaml") for p in root.glob(depth))  # it may hold anything
    return frozenset(p.relative_to(root).parent.as_posix() for p in files)


def options(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """The names one can choose from in `group`, those of the user's `folders` included."""
    roots = [root / group for root in (SHIPPED, *folders)]
    return sorted({p.relative_to(root).with_suffix("").as_posix() for root in roots for p in root.rglob("*.yaml")})


def own_files(loader, primary: str, overrides: Sequence[str], folders: Sequence[Path]) -> list[tuple[Path, DictConfig]]:
    """The user's files that take part in a config, in order: the path of each, and what it sets where.

    Raises UserError for one that is left aside because conf/ has another of that name.
    """
    _, repository = loader._parse_overrides_and_create_caching_repo(primary, list(overrides))
    found = []
    for default in loader.compute_defaults_list(primary, list(overrides), RunMode.RUN).defaults:
        name = f"{default.config_path.removesuffix('.yaml')}.yaml"
        own = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if own is None:
            continue
        if not (SHIPPED / name).is_file():
            try:
                found.append((own, loader._load_single_config(default=default, repo=repository).config))
            except OSError as error:  # Hydra's, for a list or a number too
                raise UserError(f"{own} holds no settings ({error})") from error
        elif own.read_bytes() != (SHIPPED / name).read_bytes():
            raise UserError(f"{own} would not be read: aavae has a file of that name; give yours another name")
    return found
