"""What the shipped files say of every key: whether there is one, and what kind of value it holds."""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aavae.config import hints, sources
from aavae.errors import UserError

PRIMARY = ("config", "evaluate")
NAMED = ("probe", "logger")  # groups that hold several components, each below a name
PLAIN = ("optimizer", "schedule", "trainer")  # groups whose options are no components, but settings of one
PRESETS = ("method", "experiment", "sweep")  # groups whose files set keys of others
# What else may stand where a shipped file says null or auto.
ALSO = {
    "trainer.clip": 1.0,
    "trainer.max_steps": 1,
    "dataset.path": "",
    "dataset.mean": [1.0],
    "dataset.std": [1.0],
    "dataset.resize": 1,
    "augmentation.strength": 1.0,
    "augmentation.blur_p": 1.0,
    "encoder.image_size": 1,
    "encoder.weights": "",
    "decoder.image_size": 1,
    "optimizer.reference_batch": 1,
    "logger.wandb.tags": [""],
    "data_dir": "",
    "run": "",
    "checkpoint": "",
}
WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
LISTS = {bool: "truth values", int: "whole numbers", float: "numbers", str: "names", list: "lists"}
LARGEST = 2**63 - 1


class Schema:
    """What is known of the keys of `cfg`, composed from `primary`; `own` are groups that the user has made."""

    def __init__(self, cfg: DictConfig, primary: str, own: frozenset[str] = frozenset()):
        self.own = own
        self.known, self.groups = _dials(primary), [*_groups(primary), *PRESETS * (primary == "config"), *sorted(own)]
        for group in _groups(primary):
            node: Any = cfg._get_node(group)
            if group in NAMED:
                names: Any = node if isinstance(node, DictConfig) else ()
                self.known[group] = {name: _component(group, node._get_node(name), name) for name in names}
            elif group not in self.known or "_target_" in node:
                known = _component(group, node)
                self.known[group] = None if known is None else _merge(self.known.get(group, {}), known)

    def find(self, key: str) -> list | dict | None:
        """The values that the shipped files give `key`: a list of them, a dict of keys, or None if its owner, who is
        not aavae, is to judge. Raises UserError for a key that there is not."""
        found: Any = self.known
        parts = key.split(".")
        for i, part in enumerate(parts):
            if i == 0 and part in self.own:
                return None
            if found is None or (parts[i - 1] == "kwargs" and i):
                return None
            if not isinstance(found, dict) or part not in found:  # also of a value that holds no others
                raise UserError(f"there is no key {key!r}{self._hint(key)}")
            found = found[part]
        return found

    def keys(self) -> list[str]:
        """All keys there are, dotted."""
        return [*_dotted(self.known), *self.groups]

    def _hint(self, key: str) -> str:
        group, _, rest = key.partition(".")
        if rest == "_target_" and group in PLAIN:
            return f"; {group} chooses among what aavae has, and takes no class of your own"
        if rest and (having := [name for name, node in _options(group) if _has(node, rest)]):
            return f" with what is chosen; {group}={','.join(having)} has it"
        keys = self.keys()
        if (other := hints.alias(key)) and other not in keys and (not rest or other.startswith(f"{group}.")):
            chosen, _, setting = other.partition(".")
            if having := [name for name, node in _options(chosen) if _has(node, setting)]:
                return f"; did you mean {other}, which {chosen}={','.join(having)} has?"
        near = hints.nearest(key, keys)
        if not near and rest and "." not in rest and f"{group}.kwargs" in keys:
            return f"; what else its class takes is typed {group}.kwargs.{rest}="
        return f"; did you mean {near}?" if near else "; --cfg job shows all keys"

    def check(self, config: dict) -> Iterator[tuple[str, str]]:
        """What is wrong with the plain `config`: for each key a sentence."""
        yield from self._check(config, "")
        for group, known in self.known.items():
            if group not in config:
                yield group, f"{group} is missing: every file of the group {group} sets it"
            elif group in PLAIN:
                for key in known.keys() - config[group].keys():
                    yield f"{group}.{key}", f"{group}.{key} is missing: every file of the group {group} sets it"
            elif known is None and "_target_" not in config[group]:
                yield group, f"{group}._target_ is missing: it names the class or function that is to be built"
            for name in known if group in NAMED else ():
                if known[name] is None and "_target_" not in config[group][name]:
                    yield (
                        f"{group}.{name}",
                        f"{group}.{name}._target_ is missing: it names the class that is to be built",
                    )

    def _check(self, node: dict, prefix: str) -> Iterator[tuple[str, str]]:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if not prefix and name == "hydra":
                continue
            try:
                known = self.find(key)
            except UserError as error:
                yield key, str(error)
                continue
            if value == "???":
                yield key, f"{key} has no value yet; give it one"
            if known is None:
                continue
            if wanted := _wrong(key, value, known):
                yield key, f"{key} must be {wanted}, not {shown(value)}"
            elif isinstance(value, dict):
                yield from self._check(value, f"{key}.")


def shown(value: object) -> str:
    """A value as it is typed."""
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))


def _wrong(key: str, value: object, known: list | dict) -> str | None:
    """What `key` must be, if `value` is not; `known` as `Schema.find` gives it."""
    if isinstance(known, dict):
        if isinstance(value, dict):
            return None
        if key.split(".")[0] in NAMED:
            return f"a group of settings: a file of {key.split('.')[0]}/ has a name first, and its settings below it"
        choose = f"; a file chooses an option in its defaults list, as '- override /{key}: {value}'"
        own = "" if "." in key or not isinstance(value, str) else choose
        return f"a group of settings{own or f'; set {key}.… one by one'}"
    examples = [e for e in (*known, *([ALSO[key]] if key in ALSO and {None, "auto"} & {*map(_plain, known)} else ()))]
    kinds = {type(e) for e in examples} - {type(None)}
    if value is None:
        return None if None in known or not kinds else _names(examples)
    if not kinds:  # null, of which nothing more is known: any one value
        return "a single value" if isinstance(value, dict | list) else None
    if isinstance(value, list) and list in kinds:
        elements = {type(x) for e in examples if isinstance(e, list) for x in e}
        return None if not elements or all(_is(x, elements) for x in value) else _names(examples)
    if not _is(value, kinds):
        large = isinstance(value, int) and _is(0, kinds) and not isinstance(value, bool)
        return _names(examples) + (" below 2^63" if large else "")
    if isinstance(value, str) and "auto" in known and str not in {type(e) for e in examples if e != "auto"}:
        return None if value == "auto" or kinds == {str} else _names(examples)
    return None


def _plain(value: object) -> object:
    return value if isinstance(value, str | None) else ""


def _is(value: object, kinds: set[type]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int):
        return bool({int, float} & kinds) and abs(value) <= LARGEST
    if isinstance(value, float):
        return float in kinds and math.isfinite(value)
    return type(value) in kinds


def _names(examples: list) -> str:
    """What a value like one of `examples` is called."""
    names = []
    for example in examples:
        if isinstance(example, list):
            kinds = {type(x) for x in example}
            kind = float if float in kinds else next(iter(kinds), None)
            names.append(f"a list of {LISTS[kind]}" if kind in LISTS else "a list, such as [1,2]")
        else:
            names.append("auto" if example == "auto" else "null" if example is None else WANTED[type(example)])
    names = ["a name, such as auto"] if {*names} == {"auto"} else list(dict.fromkeys(names))
    return " or ".join([n for n in names if n not in ("null", "auto")] + [n for n in ("auto", "null") if n in names])


# ---- The shipped files --------------------------------------------------------------------------------------------


@cache
def _load(path: Path) -> dict:
    content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return content


def _groups(primary: str) -> list[str]:
    chosen = [next(iter(d)) for d in _load(sources.SHIPPED / f"{primary}.yaml")["defaults"] if isinstance(d, dict)]
    return [group for group in chosen if group not in PRESETS and "/" not in group]


@cache
def multiple(primary: str) -> frozenset[str]:
    """The groups of which several options can be chosen at once."""
    defaults = _load(sources.SHIPPED / f"{primary}.yaml")["defaults"]
    return frozenset(g for d in defaults if isinstance(d, dict) for g, option in d.items() if isinstance(option, list))


def _dials(primary: str) -> dict:
    dials = {k: v for k, v in _load(sources.SHIPPED / f"{primary}.yaml").items() if k not in ("defaults", "hydra")}
    chosen = [next(iter(d)) for d in _load(sources.SHIPPED / f"{primary}.yaml")["defaults"] if isinstance(d, dict)]
    return _examples(dials) | ({"method": [""]} if "method" in chosen else {})


@cache
def _options(group: str) -> list[tuple[str, dict]]:
    """The options of `group`, and what each sets below it."""
    found = []
    for path in sorted((sources.SHIPPED / group).glob("*.yaml")):
        node = _load(path)
        if "# @package _global_" in path.read_text(encoding="utf-8"):
            node = node.get(group, {})
        found.append((path.stem, node if isinstance(node, dict) else {}))  # method: aavae is a name
    return found


def _component(group: str, node: object, name: str | None = None) -> dict | None:
    """What is known of a component: the keys of all shipped files with its `_target_`; None if it is not ours.

    A `name` tells a component of a group that holds several.
    """
    if not isinstance(node, DictConfig) or node._is_none():
        return {}  # an empty node stays empty
    target = None if group in PLAIN else node.get("_target_")
    files = [of.get(name, {}) if name else of for _, of in _options(group)]
    same = [of for of in files if of and of.get("_target_") == target]
    known: dict = {}
    for of in same:
        known = _merge(known, _examples(of))
    return known if same else None


def _examples(node: dict) -> dict:
    """`{key: [its value]}`, of nested dicts too; what refers to another key has that one's values."""
    found: dict = {}
    for key, value in node.items():
        if isinstance(value, dict):
            found[key] = {} if key == "kwargs" else _examples(value)
        elif isinstance(value, str) and value.startswith("${"):
            files = [_load(sources.SHIPPED / f"{primary}.yaml") for primary in PRIMARY]
            found[key] = [of[value[2:-1]] for of in files if value[2:-1] in of]
        else:
            found[key] = [value]
    return found


def _merge(one: dict, other: dict) -> dict:
    merged = dict(one)
    for key, value in other.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(value, dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = [*merged[key], *(v for v in value if v not in merged[key])]
    return merged


def _dotted(node: dict, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def _has(node: dict, dotted: str) -> bool:
    return dotted in _dotted(node)
