"""The house keeps its rules: who imports whom, and where Hydra may be seen."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted((ROOT / "aavae").rglob("*.py"))
}
# From the bottom to the top: a room imports from those below it, and from itself.
LEVELS = (
    ("errors",),
    ("config", "runtime"),
    ("augmentations", "models", "runs"),
    ("loggers",),
    ("datasets",),
    ("weights", "reports"),
    ("probes", "embedding"),
    ("training",),
    ("build",),
    ("sweeps",),
    ("command",),
    ("train", "evaluate", "convert", "report", "manage", "embed"),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms} | {"": len(LEVELS)}  # "": `aavae` itself
ENTRIES = {f"aavae.{room}" for room in (*LEVELS[-1], "command")}
HYDRA = ("", "config", "build", "sweeps", "command", *LEVELS[-1])  # the rooms that may see Hydra and OmegaConf


def room(name: str) -> str:
    """The room of a module: the part after `aavae`."""
    return f"{name}.".split(".")[1]


def imports(path: Path, everywhere: bool = True) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inside(path: Path, everywhere: bool = True) -> set[str]:
    return imports(path, everywhere) & set(FILES)


@pytest.mark.parametrize("name", sorted(name for name in FILES if room(name) != "conf"))
def test_no_import_runs_up(name):
    others = {m for m in inside(FILES[name]) if room(m) not in ("", "conf", room(name))}
    assert not {m for m in others if LEVEL[room(m)] >= LEVEL[room(name)]}


@pytest.mark.parametrize("name", sorted(name for name in FILES if room(name) not in HYDRA))
def test_hydra_stops_at_the_door(name):
    assert not {m for m in imports(FILES[name]) if m.split(".")[0] in ("hydra", "omegaconf")}


def test_no_cycles():
    graph = {name: inside(path) - {name} for name, path in FILES.items()}
    graph = {name: {t for t in targets if not name.startswith(f"{t}.")} for name, targets in graph.items()}
    done: set[str] = set()
    while ready := {name for name, targets in graph.items() if name not in done and targets <= done}:
        done |= ready
    assert set(graph) == done, f"in a cycle: {sorted(set(graph) - done)}"


def test_the_config_is_checked_before_torch_is_imported():
    begun = {"aavae", *ENTRIES, *(name for name in FILES if room(name) in ("build", "config"))}
    while more := set().union(*(inside(FILES[name], everywhere=False) for name in begun)) - begun:
        begun |= more
    for name in begun:
        heavy = {m for m in imports(FILES[name], everywhere=False) if m.split(".")[0] in ("torch", "timm", "wandb")}
        assert not heavy, (name, heavy)


def test_timm_and_torchvision_are_imported_only_where_they_are_used():
    # A run of the paper needs neither, and together they take seconds that every job of a sweep would wait.
    heavy = {name for name, path in FILES.items() if {"timm", "torchvision"} & _packages(path)}
    assert heavy == {"aavae.models.encoders.timm_model", "aavae.models.mae", "aavae.weights.libraries"}
    begun = {"aavae.train", "aavae.models.encoders.resnet", "aavae.models.decoders.resnet", "aavae.datasets.downloads"}
    while more := set().union(*(inside(FILES[name]) for name in begun)) - begun:
        begun |= more
    assert not heavy & begun


def _packages(path: Path) -> set[str]:
    return {m.split(".")[0] for m in imports(path, everywhere=False)}


def test_labels_never_enter_the_step():
    source = FILES["aavae.training.trainer"].read_text() + FILES["aavae.datasets.loader"].read_text()
    assert not re.search(r"\blabels\b", source)


def test_nothing_is_called_utils():
    assert not [name for name in FILES if re.search(r"utils|helpers|common|misc", name)]
