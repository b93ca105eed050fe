"""Where a run comes from: code, versions, machine, command, seed and images, for whoever must repeat it."""

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import aavae
from aavae.runtime import files, secrets

if TYPE_CHECKING:  # it takes a second to import, and a report only reads
    import torch

PROVENANCE = "provenance.json"
PACKAGES = ("aavae", "torch", "torchvision", "timm", "hydra-core", "numpy")
PATIENCE = 5.0  # seconds, for all that a program is asked
CODE = ("*.py", "*.pyx", "*.so", "*.pyd")


def provenance(device: "torch.device", command: str, seed: int | None, fingerprint: str, processes: int = 1) -> dict:
    """Plain data on a session that starts now; `fingerprint` is the dataset's, and `processes` train together.

    What cannot be known is null. Names of the machine and its user are left out, and paths, unless they were typed.
    """
    import torch

    package = Path(aavae.__file__).parent
    git, here = checkout(package, "__init__.py"), checkout(Path.cwd())
    another = here if here and (git is None or here.root != git.root) else None
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "seed": seed,
        "data": fingerprint,
        "git": git and git.said,
        "git_here": another and another.said,
        "versions": versions(device),
        "device": hardware(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "platform": platform.platform(),
    }


def note(folder: Path, entry: dict) -> None:
    """Append a session to the list in the folder's provenance.json; a damaged one is kept aside, which is said.

    Raises UserError where it cannot be written.
    """
    path = folder / PROVENANCE
    content, sessions = path.read_bytes() if path.exists() else b"[]", None
    with contextlib.suppress(ValueError):  # no JSON, or no text
        sessions = files.parsed(content)
    if not isinstance(sessions, list):
        aside, sessions = path.with_name(f"{PROVENANCE}.damaged"), []
        files.write(aside, content)
        print(f"{path} is damaged; it is kept as {aside.name}, and a new one begun", file=sys.stderr)
    files.write(path, json.dumps([*sessions, secrets.hidden(entry)], indent=1) + "\n")


def sessions(folder: Path) -> list[dict]:
    """The sessions in a run's provenance.json, the values in them of the kind that `provenance` writes, or None; none
    where it has none that can be read."""
    try:
        found = files.parsed((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    kinds = {"git": dict, "git_here": dict, "versions": dict, "threads": int}

    def known(session: dict) -> dict:
        return {k: v if isinstance(v, kinds.get(k, object)) else None for k, v in session.items()}

    return [known(entry) for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


# ---- Code ---------------------------------------------------------------------------------------------------------


class Checkout(NamedTuple):
    """A git checkout: its top folder, its commit, whether its files differ from it or there is code that git does not
    track (None: git took too long to say), and where its `origin` is to be had."""

    root: str
    commit: str
    dirty: bool | None
    remote: str | None = None

    @property
    def said(self) -> dict:
        """What a session notes down of it."""
        return {"commit": self.commit, "dirty": self.dirty, "remote": self.remote}


def checkout(folder: Path, file: str | None = None) -> Checkout | None:
    """The git checkout around `folder`, which must track its `file` where one is named; None if there is none."""
    until = time.monotonic() + PATIENCE

    def git(*arguments: str) -> str | None:
        return _output("git", "-C", str(folder), "-c", "core.fsmonitor=false", *arguments, until=until)

    found = git("rev-parse", "--show-toplevel", "HEAD")
    # A package in site-packages may lie in somebody's repository without being a part of it.
    if found is None or (file and git("ls-files", "--error-unmatch", "--", file) is None):
        return None
    root, _, commit = found.strip().rpartition("\n")
    remote = public(git("config", "--get", "remote.origin.url") or "")
    # Of what git does not track only code counts: a folder of runs changes nothing, and a run keeps its config.
    changes = git("status", "--porcelain", "--untracked-files=no")
    new = git("ls-files", "--others", "--exclude-standard", "--", *(f":(top){pattern}" for pattern in CODE))
    return Checkout(root, commit, None if changes is None or new is None else bool(changes or new), remote)


def public(remote: str) -> str | None:
    """A remote's address without names, passwords and tokens before its host; None for a path of this machine."""
    if url := re.fullmatch(r"((?:https?|ssh|git)://)(?:[^/]*@)?([^/@]+/.*)", remote.strip()):
        return "".join(url.groups())
    # As in git@github.com:TEAM/PROJECT.git, where the name is everybody's.
    return remote.strip() if re.fullmatch(r"git@[^/:]+:.+", remote.strip()) else None


def _output(*command: str, until: float) -> str | None:
    """What a program prints; None if it is not there, fails, or has no answer by `until`. It cannot ask anything."""
    # A git hook that started us has told git where to look by variables, which are not about this folder.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1"}
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=max(0.0, until - time.monotonic()),
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout


# ---- Versions and machine -----------------------------------------------------------------------------------------


def versions(device: "torch.device") -> dict[str, str | None]:
    """Of Python and the packages that decide numbers, and on a GPU of CUDA, cuDNN and the driver."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    if device.type == "cuda":
        import torch

        cudnn, ask = (
            torch.backends.cudnn.version(),
            ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        )
        driver = _output(*ask, until=time.monotonic() + PATIENCE)
        found |= {"cuda": torch.version.cuda, "cudnn": cudnn and str(cudnn)}
        found["driver"] = driver.splitlines()[0].strip() if driver else None
    return found


def hardware(device: "torch.device") -> str:
    """The name of the GPU, or the model of the CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # not Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return cpu if device.type == "cpu" else f"{device.type} of {cpu}"
