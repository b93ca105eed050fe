"""What the names of image files say: which part of a dataset each belongs to, and which class."""

import re
from collections import Counter
from typing import NamedTuple

from aavae.errors import UserError
from aavae.runtime.words import count

WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validate", "validation", "eval", "evaluation", "dev", "development"),
    "test": ("test", "testing"),
}
PART = re.compile(
    "|".join(f"(?P<{part}>(?:{'|'.join(words)})[ _.-]?(?:set|sets|data|dataset|images|imgs|split)?)"
             for part, words in WORDS.items()),
    re.IGNORECASE,
)  # fmt: skip
# Part of a folder's name, such as seg_train, train2017 or testA: not understood, and no class either.
LIKE_A_PART = {word for words in WORDS.values() for word in words} | {"holdout", "heldout", "pred", "prediction"}
IMAGES = {"images", "imgs", "image", "img", "jpegimages"}  # what lies beside it is masks and the like
WRAPPERS = {"images", "imgs", "data", "unknown", "unlabeled", "unlabelled"}  # of a test part without classes


class Layout(NamedTuple):
    """Names by part (`train` and, where there, `val` and `test`), and the names of the classes; none: unlabelled.

    The class of an image is the folder number `depths[part]` of its name. `notes` are sentences for the user on what is
    not used, and why.
    """

    parts: dict[str, list[str]]
    classes: list[str]
    depths: dict[str, int]
    notes: list[str]

    def class_of(self, part: str, name: str) -> str:
        """The class of an image of `part`."""
        return name.split("/")[self.depths[part]]


def part_of(folder: str) -> str | None:
    """The part that a folder's name stands for, in any case: `Training_set` is `train`, `valid` is `val`."""
    match = PART.fullmatch(folder)
    return match.lastgroup if match else None


def readable(name: str) -> str:
    """A file's name as text for one line: bytes that are no UTF-8 are written as \\xNN, a line's end as \\n."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def listed(names, most: int = 5) -> str:
    """Up to `most` names, and how many there are more."""
    names = [readable(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def common_folder(names: list[str]) -> str:
    """The folders, with a closing slash, that wrap everything, as zips often have them; the class folders stay."""
    depth = _wrappers(names, 0, part_of)
    return "".join(f"{folder}/" for folder in names[0].split("/")[:depth])


def layout(names: list[str]) -> Layout:
    """The layout of images with these names. Raises UserError for one that can be understood in two ways."""
    by_top: dict[str, list[str]] = {}
    for name in names:
        top, slash, _ = name.partition("/")
        by_top.setdefault(top if slash else "", []).append(name)
    parts = {top: part_of(top) for top in by_top}
    if not all(parts.values()):
        _refuse_half_understood(by_top, parts)
        return _with_classes({"train": names}, {"train": 0})
    if twice := [part for part, count in Counter(parts.values()).items() if count > 1]:
        both = [f"{top}/" for top, part in parts.items() if part == twice[0]]
        raise UserError(
            f"dataset.path has {' and '.join(both)}, which both say {twice[0]}; merge them, or move one away"
        )
    if "train" not in parts.values():
        raise UserError(f"dataset.path has {', '.join(f'{top}/' for top in parts)} but no train/ folder with images")
    found = {part: by_top[top] for top, part in parts.items() if part}
    return _with_classes(found, dict.fromkeys(found, 1))


def _refuse_half_understood(by_top: dict[str, list[str]], parts: dict[str, str | None]) -> None:
    tops = [top for top in by_top if top]
    nested = {top: any(n.count("/") > 1 for n in members) for top, members in by_top.items()}
    strange = [f"{top}/" if top else f"loose images ({by_top[''][0]})" for top, part in parts.items() if not part]
    if "train" in parts.values() and len({*parts.values()} - {None}) > 1:
        raise UserError(f"dataset.path has train/ and a held-out part, but also {listed(strange)}; move that away")
    if len(tops) > 1 and all(_like_a_part(top) for top in tops):
        raise UserError(
            f"dataset.path has {listed(f'{top}/' for top in sorted(tops))}, which are no classes; name them "
            "train/, val/ and test/, and move away what is none of these"
        )
    # `train` may be the name of a class, of vehicles; `test` may not, nor a folder that has folders itself.
    lone = [top for top, part in parts.items() if part and (top.lower() != "train" or nested[top])]
    if lone and len(tops) > 1:
        raise UserError(
            f"dataset.path has {lone[0]}/ beside {listed(strange)}: a part or a class? put the class folders into "
            f"train/ and move away what is none, or give {lone[0]}/ another name"
        )


def _refuse_what_is_no_class(names: list[str], at: int, classes: list[str]) -> None:
    if len(classes) > 1 and (images := [c for c in classes if c.lower() in IMAGES]):
        others = listed(f"{c}/" for c in classes if c != images[0])
        raise UserError(
            f"dataset.path has {images[0]}/ beside {others}, which are no classes; move the others away, or name "
            f"{images[0]}/ itself in dataset.path="
        )
    inner = sorted({tuple(n.split("/")[at : at + 2]) for n in names if n.count("/") > at + 1})
    held_out = [top for top, folder in inner if part_of(folder) in ("val", "test")]
    if not held_out:
        return
    inside = [(top, folder) for top, folder in inner if part_of(folder)]
    both = listed(f"{top}/{folder}/" for top, folder in inside if top == held_out[0])
    if {top for top, _ in inside} == {held_out[0]} and "train" in {part_of(folder) for _, folder in inside}:
        raise UserError(
            f"dataset.path has {both} beside other images; move the others away, or name {held_out[0]}/ itself in "
            "dataset.path="
        )
    raise UserError(
        f"dataset.path has {both}: parts within a class folder; it should be the other way round, as in "
        f"{inside[0][1]}/{inside[0][0]}/"
    )


def _folders_within(names: list[str], at: int) -> str | None:
    """A folder in a class folder that has others beside it."""
    inner = sorted({tuple(n.split("/")[at : at + 2]) for n in names if n.count("/") > at + 1})
    several = Counter(top for top, _ in inner)
    return next(("/".join(found) for found in inner if several[found[0]] > 1), None)


def _like_a_part(folder: str) -> bool:
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", folder).lower())
    return part_of(folder) is not None or bool(LIKE_A_PART & {*words})


def _wrappers(names: list[str], depth: int, stop=lambda folder: False) -> int:
    """The depth below which there is more than one folder, or files; a folder for which `stop` holds ends it."""
    while all(n.count("/") >= depth + 2 for n in names):
        folders = {n.split("/", depth + 1)[depth] for n in names}
        if len(folders) > 1 or stop(*folders):
            break
        depth += 1
    return depth


def _with_classes(parts: dict[str, list[str]], depths: dict[str, int]) -> Layout:
    notes, train = [], parts["train"]
    depths = depths | {"train": _wrappers(train, depths["train"], part_of) if depths["train"] == 0
                       else _wrappers(train, depths["train"])}  # fmt: skip
    at = depths["train"]
    loose = [n for n in train if n.count("/") <= at]
    classes = sorted({n.split("/", at + 1)[at] for n in train if n.count("/") > at})
    _refuse_what_is_no_class(train, at, classes)
    if len(classes) > 1 and not loose and (within := _folders_within(train, at)):
        notes.append(f"the class is the first folder; folders within, such as {readable(within)}/, are not told apart")
    if loose and classes:
        notes.append(
            f"{len(loose):,} loose images ({listed(loose, 1)}) lie beside folders: all count as unlabelled, also those "
            "in the folders"
        )
    if len(classes) == 1 and not loose:
        notes.append(f"there is one class folder only, {readable(classes[0])}/: the images count as unlabelled")
    if loose or len(classes) == 1:
        classes = []
    kept = {}
    for part, members in parts.items():
        if part == "test" and not classes:
            notes.append(
                f"not used: {count(len(members), 'image')} of the test part, as there are no labels to test with"
            )
            continue
        if part != "train" and classes:
            depths[part] = _wrappers(members, depths[part], lambda folder: folder in classes)
            flat = _without_classes(part, members, depths[part], classes)
            if flat:
                instead = f"images of the training part are held out for {part} instead"
                notes.append(
                    f"not used: {count(len(members), 'image')} of the {part} part, which have no classes; {instead}"
                )
                continue
        kept[part] = members
    return Layout(kept, classes, depths, notes)


def _without_classes(part: str, members: list[str], depth: int, classes: list[str]) -> bool:
    loose = [n for n in members if n.count("/") <= depth]
    folders = {n.split("/", depth + 1)[depth] for n in members if n.count("/") > depth}
    if loose and folders:
        raise UserError(
            f"the {part} part has {len(loose):,} loose images ({listed(loose, 1)}) beside its class folders; "
            "move them away"
        )
    if len(folders) == 1 and not folders <= {*classes}:
        (only,) = folders
        return part_of(only) is not None or only.lower() in WRAPPERS
    if strange := sorted(folders - {*classes}):
        raise UserError(f"dataset.path has the class {listed(strange)} in its {part} part only, and not in training")
    return bool(loose)
