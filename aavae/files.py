"""Files written whole or not at all, and a folder held by one process."""

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

from aavae.errors import UserError


@contextlib.contextmanager
def whole(path: Path):
    """A binary handle whose content becomes `path` when all of it is on the disk: a temporary name, flushed, renamed.

    Raises UserError where it cannot be written; what was there before then still is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise UserError(f"cannot write {path}: {cause}") from error
    finally:
        with contextlib.suppress(OSError):  # on a read-only disk, say, where there is none
            temporary.unlink()


def write(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all."""
    with whole(path) as handle:
        handle.write(data.encode() if isinstance(data, str) else data)


def also_as(path: Path, name: str) -> None:
    """Give the file `path` a second name beside it, without writing it twice where the disk has hard links."""
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, path.with_name(name))
    finally:
        temporary.unlink(missing_ok=True)  # left over, too, if both were names of one file already


@contextlib.contextmanager
def only_one(folder: Path, key: str = "hydra.run.dir"):
    """Hold a folder, which `key` names, for this process.

    Raises UserError if another one holds it, or if nothing can be written there.
    """
    try:
        handle = open(folder / ".lock", "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"cannot write in {folder} ({error.strerror}); name another {key}=") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is busy in {folder}; wait for it, or name another {key}=") from error
        yield
