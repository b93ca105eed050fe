"""Where configs come from: the files of conf/, and folders of the user's (`--config-dir`, `hydra.searchpath=`)."""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import hydra
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from aavae.errors import UserError

SHIPPED = Path(str(resources.files("aavae.conf")))
OTHERS = ("__pycache__", "wandb")  # wandb/ holds sweeps that Weights & Biases reads, not Hydra


@contextlib.contextmanager
def loader(config_dir: str | None = None, job_name: str = "app") -> Iterator:
    """Hydra's config loader over conf/ and `config_dir`, in the order of its command line; `hydra.compose` uses it."""
    with hydra.initialize_config_module("aavae.conf", job_name=job_name, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        if config_dir:
            path = loader.get_search_path()
            path.prepend("command-line", f"file://{Path(config_dir).absolute()}", SearchPathQuery(provider="schema"))
            loader.repository.initialize_sources(path)
        yield loader


def own_folders(config_dir: str | None, overrides: Sequence[Override] = ()) -> tuple[Path, ...]:
    """The user's folders of configs. Raises UserError for one that is not there."""
    given = [config_dir] if config_dir is not None else []
    for override in overrides:
        if override.key_or_group == "hydra.searchpath" and isinstance(override.value(), list):
            given += [str(path) for path in override.value()]
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
    found = [p.relative_to(SHIPPED) for p in SHIPPED.rglob("*") if p.is_dir() and p.name not in OTHERS]
    for root in folders:  # which may hold anything: not searched to the bottom
        found += [p.relative_to(root).parent for depth in ("*/*.yaml", "*/*/*.yaml") for p in root.glob(depth)]
    return frozenset(p.as_posix() for p in found)


def options(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """The names one can choose from in `group`, those of the user's `folders` included."""
    return sorted({p.stem for root in (SHIPPED, *folders) for p in (root / group).glob("*.yaml")})


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
            found.append((own, loader._load_single_config(default=default, repo=repository).config))
        elif own.read_bytes() != (SHIPPED / name).read_bytes():
            raise UserError(f"{own} would not be read: aavae has a file of that name; give yours another name")
    return found
