"""Folders for the caches and settings of libraries, also where the home folder takes no files."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Where Linux has them unless the environment says otherwise; Weights & Biases, matplotlib and torch follow.
PLACES = {"XDG_CACHE_HOME": "~/.cache", "XDG_CONFIG_HOME": "~/.config", "XDG_DATA_HOME": "~/.local/share"}


def settle() -> None:
    """Set the variables of `PLACES` whose default cannot be written to a folder that lasts as long as this process.

    Otherwise libraries complain of it in many lines, as in a container of another user.
    """
    lost = [name for name, place in PLACES.items() if name not in os.environ and not _takes_files(place)]
    if lost:
        folder = tempfile.mkdtemp(prefix="aavae-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ.update(dict.fromkeys(lost, folder))


def _takes_files(place: str) -> bool:
    folder = Path(os.path.expanduser(place))
    if not folder.is_absolute():  # `~` could not be expanded
        return False
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False
