"""What a folder of runs can do without: which files, how large they are, and their removal."""

import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from aavae.errors import UserError
from aavae.runs import status
from aavae.runtime import files, seals

LAST, PREVIOUS, INTERMEDIATE = "last.pt", "previous.pt", "epoch_*.pt"  # as `weights.checkpoint` names them
KINDS = {
    "previous": "the checkpoint before the last one",
    "checkpoints": "checkpoints on the way",
    "failed": "the whole folder of a failed run",
}


class Surplus(NamedTuple):
    """What of a run may go: its files, or the whole `folder` where there are none, with their size in bytes."""

    folder: Path
    kind: str
    paths: tuple[Path, ...]
    size: int


def surplus(folder: Path, state: str, kinds: Iterable[str], written_about: bool) -> list[Surplus]:
    """What the run in `folder`, which is in `state`, can do without.

    Of a finished run never its only whole checkpoint; of a failed one nothing where somebody has written about it.
    """
    found = []
    if state == "failed" and "failed" in kinds and not written_about:
        found.append(Surplus(folder, "failed", (), _size(p for p in folder.rglob("*") if p.is_file())))
    if state == "done" and is_whole(folder / LAST):
        for kind, pattern in (("previous", PREVIOUS), ("checkpoints", INTERMEDIATE)):
            paths = tuple(sorted(folder.glob(pattern)))
            if kind in kinds and paths:
                found.append(Surplus(folder, kind, paths, _size(paths)))
    return found


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is there, and every byte of it as it was written."""
    try:
        with open(path, "rb") as handle:
            seals.verify_zip(handle)
        return True
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError):
        return False


def remove(what: Surplus) -> None:
    """Remove it. Raises UserError if a process is busy in the folder, if the run goes on, or where that fails."""
    with files.only_one(what.folder):
        said = status.read(what.folder)
        expected = "failed" if what.kind == "failed" else "done"
        if said is None or status.state_of(said) != expected:
            raise UserError(f"{what.folder} has changed: it is no longer {expected}")
        try:
            for path in what.paths:
                path.unlink(missing_ok=True)
            if not what.paths:
                shutil.rmtree(what.folder)
        except OSError as error:
            raise UserError(f"cannot remove {error.filename} ({error.strerror})") from error


def _size(paths: Iterable[Path]) -> int:
    """Bytes on the disk: a file with several names counts once, and not at all where one of them stays."""
    names: dict[tuple[int, int], list[int]] = {}
    for path in paths:
        about = path.lstat()
        names.setdefault((about.st_dev, about.st_ino), []).append(about.st_nlink)
        names[about.st_dev, about.st_ino].append(about.st_size)
    return sum(said[1] for said in names.values() if len(said) // 2 >= said[0])
