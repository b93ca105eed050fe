"""Which images were found whole, remembered in the user's cache: a large dataset takes minutes to be checked."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np

from aavae.errors import UserError
from aavae.runtime import files

WORTH = 10.0  # seconds that a check takes at least to be remembered


def _place(key: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "aavae" / "checked" / f"{key[:32]}.npz"


def recall(key: str, n: int) -> tuple[list[int], dict[int, str]] | None:
    """CRC-32 of each of n files, and what is wrong with which of them; None if nobody knows."""
    with contextlib.suppress(Exception):  # a damaged zip fails in a dozen ways; then they are checked again
        with np.load(io.BytesIO(_place(key).read_bytes()), allow_pickle=False) as known:
            crcs, bad = known["crcs"].tolist(), json.loads(str(known["bad"]))
        if len(crcs) == n:
            return crcs, {int(i): str(reason) for i, reason in bad.items()}
    return None


def remember(key: str, crcs: list[int], bad: dict[int, str], seconds: float) -> None:
    """Keep what a check has found that took `seconds`."""
    if seconds < WORTH:
        return
    content = io.BytesIO()
    np.savez(content, crcs=np.array(crcs, np.uint32), bad=json.dumps(bad))
    with contextlib.suppress(OSError, UserError):  # a home that cannot be written to: checked again next time
        _place(key).parent.mkdir(parents=True, exist_ok=True)
        files.write(_place(key), content.getvalue())
