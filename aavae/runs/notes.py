"""`notes.json` of a run folder: what a person has written about the run, and its tags."""

import json
from pathlib import Path
from typing import NamedTuple

from aavae.errors import UserError
from aavae.runs.status import now
from aavae.runtime import files

NOTES = "notes.json"


class Notes(NamedTuple):
    """Notes as (time, text), the oldest first, and tags in the order of the alphabet."""

    notes: list[tuple[str, str]]
    tags: list[str]


def read(folder: Path) -> Notes:
    """Those of the run in `folder`, none if there are none. Raises UserError where the file is damaged."""
    try:
        found = files.parsed((folder / NOTES).read_text(encoding="utf-8"))
        notes = [(str(note["time"]), str(note["text"])) for note in found["notes"]]
        return Notes(notes, sorted({str(tag) for tag in found["tags"]}))
    except FileNotFoundError:
        return Notes([], [])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / NOTES} is damaged ({error}); repair it, or delete it") from error


def add_note(folder: Path, text: str) -> None:
    """Add a note of now. Raises UserError where it cannot be written."""
    notes, tags = read(folder)
    _write(folder, [*notes, (now(), text)], tags)


def change_tags(folder: Path, added: set[str], removed: set[str]) -> list[str]:
    """Add and remove tags; those that there are then. Raises UserError where they cannot be written."""
    notes, tags = read(folder)
    tags = sorted({*tags, *added} - removed)
    _write(folder, notes, tags)
    return tags


def _write(folder: Path, notes: list[tuple[str, str]], tags: list[str]) -> None:
    content = {"notes": [{"time": time, "text": text} for time, text in notes], "tags": tags}
    files.write(folder / NOTES, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
