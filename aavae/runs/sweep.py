"""The folder of a sweep: which jobs belong to it, by which commands it was launched, how each stands."""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from aavae.errors import UserError
from aavae.runs import status
from aavae.runtime import files, secrets

SWEEP = "sweep.json"


@dataclass(frozen=True)
class Job:
    """A job of a sweep: its overrides, its folder, and the swept ones among the overrides as its name."""

    number: int
    overrides: list[str]
    folder: Path
    name: str


def read(folder: Path) -> dict:
    """What is known of the sweep in `folder`. Raises UserError where there is none, or it is damaged."""
    try:
        sweep = files.parsed((folder / SWEEP).read_text(encoding="utf-8"))
        [*_] = (launch["overrides"] for launch in sweep["launches"])
        [*_] = (job["folder"] + job["name"] for job in sweep["jobs"])
        return sweep
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not the folder of a sweep: it has no {SWEEP}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / SWEEP} is damaged ({error}); delete it, and the command of the sweep writes another"
        ) from error


def names(folder: Path) -> dict[Path, str]:
    """The name of each job of the sweep in `folder`, by the folder of its run; none where nothing was launched yet."""
    known = read(folder)["jobs"] if (folder / SWEEP).exists() else []
    return {folder / job["folder"]: job["name"] for job in known}


def afresh(folder: Path, overrides: list[str]) -> str | None:
    """Since when the runs of this launch are to begin anew; None where they go on from what they have."""
    if not (folder / SWEEP).exists():
        return None

    def what(words: list[str]) -> list[str]:
        return [word for word in words if not word.startswith(("hydra/launcher=", "dry_run="))]

    known = [
        launch for launch in read(folder)["launches"] if what(launch["overrides"]) == what(secrets.hidden(overrides))
    ]
    return max((launch["afresh"] for launch in known if "afresh" in launch), default=None)


def is_outdated(folder: Path, since: str | None) -> bool:
    """Whether the run in `folder` began before its launch wanted it anew."""
    if since is None:
        return False
    with suppress(UserError, ValueError, TypeError, KeyError):
        said = status.read(folder)
        return said is not None and datetime.fromisoformat(said["started"]) < datetime.fromisoformat(since)
    return True  # one that does not say when it began


def record(
    folder: Path, overrides: list[str], config_dir: str | None, jobs: list[Job], since: str | None = None
) -> None:
    """Add a launch and its jobs, which are to begin anew if they began before `since`; one that was there before is not
    there twice."""
    sweep: dict[str, Any] = {"name": folder.name, "created": status.now(), "launches": [], "jobs": []}
    if (folder / SWEEP).exists():
        sweep = read(folder)
    launches = [launch for launch in sweep["launches"] if launch["overrides"] != secrets.hidden(overrides)]
    launch = {"overrides": overrides, "config_dir": config_dir, "started": status.now()}
    sweep["launches"] = [*launches, launch | ({"afresh": since} if since else {})]
    known = {job["folder"]: job for job in sweep["jobs"]}
    for job in jobs:
        place = str(job.folder.relative_to(folder)) if job.folder.is_relative_to(folder) else str(job.folder)
        known[place] = {"folder": place, "overrides": job.overrides, "name": job.name}
    sweep["jobs"] = list(known.values())
    files.write(folder / SWEEP, json.dumps(secrets.hidden(sweep), indent=1) + "\n")
