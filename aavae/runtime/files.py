"""Files written whole or not at all, and a folder held by one process."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

from aavae.errors import UserError

LOCK = ".lock"
DIGITS = 300  # of the longest whole number that is read from a file


@contextlib.contextmanager
def whole(path: Path):
    """A binary handle whose content becomes `path` when all of it is on the disk: a temporary name, flushed, renamed,
    and the folder flushed.

    Raises UserError where it cannot be written; what was there before then still is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
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


def parsed(text: str | bytes) -> Any:
    """What a JSON text says. Raises ValueError for what is none, nested too deep to be read, or a whole number that no
    float can hold."""
    try:
        return json.loads(text, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _whole_number(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def also_as(path: Path, name: str) -> None:
    """Give the file `path` a second name beside it, without writing it twice where the disk has hard links.

    Raises UserError where that cannot be written.
    """
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        with open(path, "rb") as source, whole(path.with_name(name)) as copy:
            shutil.copyfileobj(source, copy)
        return
    try:
        os.replace(temporary, path.with_name(name))
        _sync(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path.with_name(name)}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)  # left over, too, if both were names of one file already


def _sync(folder: Path) -> None:
    """Bring to the disk what files are in a folder and how they are called: otherwise a power cut may undo a rename."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # one may write there, and not look
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # a disk that does so only for files
            raise
    finally:
        os.close(handle)


UNLOCKED = "AAVAE_NO_LOCK"  # an environment variable: go on without locks, where the disk knows none


# Not the package filelock: where a disk cannot lock it falls back to a file that a killed process leaves behind, and it
# cannot tell a process that waited that the file it has locked was removed.
@contextlib.contextmanager
def locked(path: Path, wait: bool = False):
    """Hold the lock that is the file `path`, whose holder, and nobody else, may remove it.

    Raises BlockingIOError if another process holds it, unless told to `wait`, OSError where it cannot be written, and
    UserError where the disk knows no locks.
    """
    if os.environ.get(UNLOCKED, "0") not in ("", "0"):
        path.touch()
        yield
        return
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # whoever held the lock may have removed the empty folder
        with open(path, "w") as handle:
            _lock(handle, path, wait)
            with contextlib.suppress(FileNotFoundError):  # removed by its holder, while this process waited for it
                if os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                    yield
                    return


def _lock(handle, path: Path, wait: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:  # ENOLCK, ENOSYS, EOPNOTSUPP: some network disks, as they were mounted
        raise UserError(
            f"the disk of {path.parent} cannot lock files ({error.strerror}), which keeps two processes out of one "
            f"folder; use another disk, or see to that yourself and set {UNLOCKED}=1 in the environment"
        ) from error


@contextlib.contextmanager
def only_one(folder: Path, key: str = "hydra.run.dir"):
    """Hold a folder, which `key` names, for this process.

    Raises UserError if another one holds it, or if nothing can be written there.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK))
        except BlockingIOError as error:
            raise UserError(f"another process is busy in {folder}; wait for it, or name another {key}=") from error
        except OSError as error:
            raise UserError(f"cannot write in {folder} ({error.strerror}); name another {key}=") from error
        yield


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing, or nothing but a lock, unless another process is busy there."""
    if not folder.is_dir() or {p.name for p in folder.iterdir()} - {LOCK}:
        return
    with contextlib.suppress(UserError, OSError), only_one(folder):
        if {p.name for p in folder.iterdir()} == {LOCK}:
            (folder / LOCK).unlink()
            folder.rmdir()
