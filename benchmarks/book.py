"""What was measured: rows of raw samples, written as JSON and Markdown each time that some are done."""

import contextlib
import dataclasses
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aavae.errors import UserError
from aavae.runtime import files
from benchmarks import tables


def summary(samples: list[float]) -> dict[str, float]:
    """Median, quartiles and extremes of one sample or more."""
    low, median, high = samples * 3 if len(samples) == 1 else statistics.quantiles(samples, method="inclusive")
    return {"median": median, "low": min(samples), "high": max(samples), "q1": low, "q3": high}


@dataclass
class Measured:
    """One measurement: `samples` in `unit` of what is called `name`, in the table `group` of a `part`.

    `note` says why there are no samples, or what is different here; `facts` are what it was measured with, and
    `columns` what follows from it and is shown beside it.
    """

    part: str
    group: str
    name: str
    unit: str = "images/s"
    note: str = ""
    samples: list[float] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    columns: dict = field(default_factory=dict)
    failed: bool = False

    @property
    def median(self) -> float | None:
        """The median sample; None without any."""
        return statistics.median(self.samples) if self.samples else None

    def plain(self) -> dict:
        """The row as plain data, with what sums up its samples."""
        return dataclasses.asdict(self) | (summary(self.samples) if self.samples else {})

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """What fails inside is said in this row, so that the others are measured all the same."""
        try:
            yield
        except Exception as error:
            what = str(error).strip().partition("\n")[0]
            if type(error).__name__ == "OutOfMemoryError":
                self.note = "out of memory"
            else:
                self.note, self.failed = f"failed: {type(error).__name__}: {what}", True
            print(f"{self.part}  {self.group}  {self.name}: {self.note}", flush=True)


class Book:
    """All rows, and the notes to each part, kept in `stem`.json and `stem`.md; `head` is about machine and options.

    Raises UserError where the folder cannot be made.
    """

    def __init__(self, stem: Path, head: dict):
        self.stem, self.head = stem, head
        self.rows: list[Measured] = []
        self.notes: dict[str, list[str]] = {}
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder {stem.parent} cannot be made ({error}); name another --out") from error

    def note(self, part: str, text: str) -> None:
        """Say something about all tables of a part, once."""
        if text not in (notes := self.notes.setdefault(part, [])):
            notes.append(text)

    def add(self, row: Measured) -> Measured:
        """A row to be filled; one that has a note already will have no samples, and is said now."""
        self.rows.append(row)
        if row.note and not row.samples:
            print(f"{row.part}  {row.group}  {row.name}: {row.note}", flush=True)
        return row

    def done(self, *rows: Measured) -> None:
        """Say what was measured, and write everything."""
        for row in rows:
            if row.samples:
                print(f"{row.part}  {row.group}  {row.name}: {tables.spread(row.plain())} {row.unit}", flush=True)
        self.write()

    def plain(self) -> dict:
        """Everything as plain data; rows that were begun and have no sample yet are left out."""
        rows = [row.plain() for row in self.rows if row.samples or row.note]
        return self.head | {"notes": self.notes, "rows": rows}

    def write(self) -> None:
        """Write `stem`.json and `stem`.md. Raises UserError where they cannot be written."""
        plain = self.plain()
        files.write(Path(f"{self.stem}.json"), json.dumps(plain, indent=1) + "\n")
        files.write(Path(f"{self.stem}.md"), tables.markdown(plain))
