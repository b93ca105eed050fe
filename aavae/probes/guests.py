"""Probes judge the representations of a trained model: records, pictures, and the proof that they changed nothing."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from aavae.datasets import Dataset
from aavae.errors import UserError
from aavae.loggers import Loggers
from aavae.loggers.screen import Reporter
from aavae.probes.representations import Representation, Representations
from aavae.runs.results import name_of, read_results, record, write_results
from aavae.runtime import files
from aavae.runtime.device import full_float32
from aavae.runtime.words import described
from aavae.weights import checkpoint

RECORD = record("", "", "", 0, 0, "").keys()  # what every record says
PNG = b"\x89PNG\r\n\x1a\n"  # the first bytes of such a file


class Picture(NamedTuple):
    """A PNG, as `name`.png in the run folder and as a panel `name` in dashboards."""

    name: str
    png: bytes


class Guest(NamedTuple):
    """A probe under the name it has in the config, the representations it is asked about, and what it leaves unsaid.

    One that nobody has asked for, and that cannot be done on the dataset, is `left_out` for that reason.
    """

    name: str
    probe: Any
    features: tuple[str, ...]
    left_out: str | None = None

    @property
    def needs_labels(self) -> bool:
        """Whether it has nothing to do without labels."""
        return getattr(self.probe, "needs_labels", True)

    @property
    def learns(self) -> bool:
        """Whether it learns while the model is trained."""
        return hasattr(self.probe, "learn") and not self.left_out

    def checked(self, dataset, asked: bool) -> "Guest":
        """The same, or left out if it could not be done on `dataset`; raises UserError if it was `asked` for."""
        if not hasattr(self.probe, "check") or (self.needs_labels and not dataset.labelled):
            return self
        try:
            self.probe.check(dataset)
        except UserError as error:
            if asked:
                raise
            return self._replace(left_out=str(error))
        return self

    def missing(self, encode) -> str | None:
        """What it misses of a representation; None if nothing."""
        return self.probe.missing(encode) if hasattr(self.probe, "missing") else None


def checksum(module: nn.Module) -> str:
    """A short hash of every parameter and buffer of `module`."""
    return checkpoint.checksum(module.state_dict())


class Evaluation:
    """What `guests` find out about `representations`, for results.json, dashboards and the screen.

    `judged` is the trained model, whose `checksum` is taken before and after; `epoch` is how long it was trained, and
    `remark` goes into every protocol. The `score` is the validation accuracy of h by the first probe that measures one:
    what a sweep may select on.
    """

    def __init__(
        self,
        guests: list[Guest],
        representations: Representations,
        judged: nn.Module,
        dataset: Dataset,
        reporter: Reporter,
        epoch: float,
        remark: str = "",
    ):
        self.guests, self.representations, self.judged = guests, representations, judged
        self.dataset, self.reporter, self.epoch, self.remark = dataset, reporter, epoch, remark
        self.checksum = checksum(judged)
        self.score: float | None = None
        self._said: set[str] = set()

    @full_float32()
    def run(self, done: Callable[[list[dict], list[Picture]], None]) -> None:
        """Ask all guests, in full float32; `done` is told at once what one has found of a representation, and its
        pictures.

        Raises RuntimeError if the trained model is not what it was before.
        """
        for guest in self.guests:
            if guest.left_out:
                self.reporter.say(f"{guest.name} is left out: {guest.left_out}")
                continue
            if guest.needs_labels and not self.dataset.labelled:
                self.reporter.say(f"{guest.name} is left out: {self.dataset.name} has no labels")
                continue
            self.reporter.say(f"probing     {guest.name}")
            for feature in guest.features:
                if encode := self._available(guest, feature):
                    found = _sound(guest.probe.run(encode, self.dataset), guest.name)
                    own = [self._as_kept(r) for r in found if isinstance(r, dict)]
                    if self.score is None:
                        self.score = next((r["value"] for r in own if _chooses(r)), None)
                    done(own, [p for p in found if isinstance(p, Picture)])
        if checksum(self.judged) != self.checksum:
            raise RuntimeError("a probe has changed the trained model; its results are worth nothing")
        self.reporter.say(f"unchanged   the trained model, checksum {self.checksum} before and after")

    def _as_kept(self, r: dict) -> dict:
        remark = {"protocol": f"{r['protocol']}, {self.remark}"} if self.remark else {}
        return r | remark | {"epoch": self.epoch}

    def _available(self, guest: Guest, feature: str) -> Representation | None:
        if reason := self.representations.missing(feature):
            self._say_once(f"{feature} is left out: {reason}")
            return None
        encode = self.representations[feature]
        if reason := guest.missing(encode):
            self._say_once(f"{guest.name} of {feature} is left out: {reason}")
            return None
        return encode

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self.reporter.say(text)
            self._said.add(text)


class Results:
    """The file `results.json` of a folder, written whole each time, and the pictures beside it.

    With `keep`, what earlier evaluations of the same epoch have found is kept where it is not measured again.
    """

    def __init__(self, folder: Path, logger: Loggers, step: int, epoch: float, keep: bool = False):
        self.folder, self.logger, self.step = folder, logger, step
        self.records = [r for r in read_results(folder) if r["epoch"] == epoch] if keep else []

    def add(self, records: list[dict], pictures: Sequence[Picture] = ()) -> None:
        """Write what a probe has found."""
        new = {name_of(r) for r in records}
        self.records = [r for r in self.records if name_of(r) not in new] + records
        write_results(self.folder, self.records)
        keep_pictures(pictures, self.folder, self.logger, self.step)


def keep_pictures(pictures: Sequence[Picture], folder: Path, logger: Loggers, step: int) -> None:
    """Write pictures to `folder` and show them to the loggers."""
    for picture in pictures:
        path = folder / f"{picture.name}.png"
        files.write(path, picture.png)
        logger.picture(picture.name, path, step)


def _sound(found: Any, name: str) -> list[dict | Picture]:
    """What a probe has returned. Raises UserError where that is not records and pictures."""
    if not isinstance(found, Iterable) or isinstance(found, str | dict | Picture):
        raise UserError(f"probe {name} must return a list of records and pictures from run, not {described(found)}")
    found = list(found)
    for one in found:
        if isinstance(one, Picture):
            if not isinstance(one.png, bytes) or not one.png.startswith(PNG) or one.name != Path(one.name).name:
                raise UserError(f"probe {name} must return a Picture of a file's name and the bytes of a PNG")
        elif not isinstance(one, dict) or not (one.keys() >= RECORD and isinstance(one["value"], int | float)):
            raise UserError(
                f"probe {name} must return records as aavae.probes.record makes them, and pictures, not {one!r:.80}"
            )
    return found


def _chooses(r: dict) -> bool:
    return (r["feature"], r["split"], r["metric"]) == ("h", "val", "accuracy")
