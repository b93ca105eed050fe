"""Numbers and pictures in Weights & Biases."""

import contextlib
import logging
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from aavae.errors import UserError, first_line
from aavae.loggers import Beginning
from aavae.loggers.screen import shown
from aavae.runs.results import name_of
from aavae.runtime.output import complain
from aavae.runtime.words import shortened, wrapped

ROOM = 2**20  # bytes on the disk of W&B's folder, below which its own process loses numbers without a word


class WandB:
    """A Weights & Biases run; offline where nobody is logged in or the server cannot be reached, which is said once.

    What is None is left to Weights & Biases' own variables (WANDB_NAME, WANDB_TAGS, …). In a sweep `name` stands before
    what tells a job from the others. With `log_model` the encoder of a finished run becomes an artifact;
    `system_metrics` are the use of processors, memory, disk and network. Raises UserError for an unknown `mode` or
    `tags` that are no list, and from `start` for names that Weights & Biases refuses or an API key that cannot be one.
    """

    place = "wandb"

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        mode: str | None = None,
        name: str | None = None,
        notes: str | None = None,
        tags: list[str] | None = None,
        group: str | None = None,
        log_model: bool = False,
        system_metrics: bool = True,
    ):
        mode = mode or os.environ.get("WANDB_MODE")
        if mode not in (None, "online", "offline", "disabled"):
            raise UserError(f"logger.wandb.mode must be online, offline, disabled or null, not {mode!r}")
        if not isinstance(tags, list | tuple | None):
            raise UserError(f"logger.wandb.tags must be a list, such as [{tags}], not {tags!r}")
        self.mode, self.tags = mode, tags and [str(tag) for tag in tags]
        if bad := [tag for tag in self.tags or () if not 1 <= len(tag) <= 64]:
            raise UserError(f"logger.wandb.tags must have 1 to 64 characters each, unlike {bad[0]!r}")
        self.project, self.entity = _given(project, "WANDB_PROJECT") or "aavae", entity
        self.name, self.group = _given(name, "WANDB_NAME"), _given(group, "WANDB_RUN_GROUP")
        self.notes = _given(notes, "WANDB_NOTES")
        self.log_model, self.system_metrics = log_model, system_metrics

    def start(self, run: Beginning) -> None:
        """Begin the run, or continue the one the checkpoint remembers; under `wandb agent` it is the agent's."""
        import wandb

        self._wandb: Any = wandb
        self.folder = run.folder / self.place
        mode, known = self.mode, run.remembered.get("id")
        # WANDB_RUN_ID in the environment names one training, not every job of a sweep, nor an evaluation.
        apart = run.group is not None or run.job_type != "pretrain"
        said = {"chosen": run.chosen} if run.chosen else {}
        said |= {"provenance": run.provenance}
        arguments = {
            "project": self.project, "entity": self.entity, "tags": self.tags, "notes": self.notes,
            "job_type": run.job_type, "dir": str(run.folder), "name": self._name(run), "group": self._group(run),
            "config": run.config | said,
            "id": known or (uuid.uuid4().hex[:8] if apart else None), "resume": "allow" if known else None,
            "reinit": "finish_previous",
        }  # fmt: skip
        wandb.setup(wandb.Settings(silent=True))
        try:
            if mode in (None, "online") and not wandb.login(prompt=False, verify=False):
                mode = "offline"
                kept = shown(run.folder / self.place)
                print(wrapped(f"Weights & Biases: not logged in; the run is kept in {kept} for wandb sync"))
        except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            raise UserError(f"Weights & Biases: {first_line(error)}; or set logger.wandb.mode=offline") from error
        arguments["settings"] = self._settings(run.provenance)
        if self.mode != "disabled" and (full := self._full()):
            complain(f"the logger wandb cannot start: {full}; the run continues without it")
            mode = "disabled"
        try:
            self.run = self._begin(mode, arguments)
        except wandb.errors.CommError as error:
            reason = f"Weights & Biases cannot be reached ({first_line(error)})"
            complain(f"{reason}; the run continues offline")
            self.run = self._begin("offline", arguments)
        for handler in logging.getLogger("wandb").handlers:  # of its debug.log, whose errors are nobody's
            handler.handleError = lambda record: None  # type: ignore[method-assign]
        self.run.define_metric("*", step_metric="step")
        for looks in ("val/*", "train_eval/*", "probe/*"):  # made at the end of an epoch
            self.run.define_metric(looks, step_metric="epoch")

    def _name(self, run: Beginning) -> str | None:
        if self.name and run.name and run.group is not None:  # or all jobs of a sweep had one name
            return shortened(f"{self.name}: {run.name}")
        return shortened(self.name) if self.name else run.name

    def _group(self, run: Beginning) -> str | None:
        return shortened(self.group) if self.group else run.group

    def _settings(self, provenance: dict):
        settings: dict[str, Any] = {"silent": True, "console": "off", "init_timeout": 30}
        if not self.system_metrics:
            settings["x_disable_stats"] = True
        # Weights & Biases would look where the run folder lies, which is in another checkout than the code, or in none.
        code = provenance.get("git") or provenance.get("git_here")
        if code and not self._wandb.env.disable_git():
            known = {"git_commit": code["commit"], "git_remote_url": code["remote"]}
            settings |= {k: v for k, v in known.items() if v and f"WANDB_{k.upper()}" not in os.environ}
            settings["git_remote"] = ""  # without an address there is none, rather than that other checkout's
        return self._wandb.Settings(**settings)

    def _begin(self, mode: str | None, arguments: dict):
        try:
            return self._wandb.init(mode=mode, **arguments)
        except self._wandb.errors.UsageError as error:
            raise UserError(f"logger.wandb: {first_line(error)}") from error

    def _full(self) -> str | None:
        """What to say if its folder is on a full disk."""
        there = next(p for p in (self.folder, *self.folder.parents) if p.is_dir())
        free = shutil.disk_usage(there).free
        return f"the disk of {shown(self.folder)} is full ({free // 1024} kB left)" if free < ROOM else None

    def _refuse_full_disk(self) -> None:
        if not self.run.disabled and (full := self._full()):
            raise OSError(full)

    def log(self, metrics: dict[str, float], step: int, epoch: float) -> None:
        """Log scalars against `step`; not finite ones too, so that a dashboard shows where a run broke."""
        self._refuse_full_disk()
        self.run.log(metrics | {"step": step, "epoch": epoch})

    def picture(self, name: str, path: Path, step: int) -> None:
        """Log an image file as a panel."""
        self._refuse_full_disk()
        self.run.log({name: self._wandb.Image(str(path)), "step": step})

    def results(self, records: list[dict]) -> None:
        """Results as a table, and each value in the run's summary."""
        if not records:
            return
        self._refuse_full_disk()
        columns = list(records[0])
        table = self._wandb.Table(columns=columns, data=[[r[c] for c in columns] for r in records])
        self.run.log({"results": table})
        for r in records:
            self.run.summary[name_of(r)] = r["value"]

    def encoder(self, path: Path, facts: dict, card: str) -> None:
        """The encoder as an artifact where that is asked for: its facts are the metadata, the card its description."""
        if self.log_model:
            artifact = self._wandb.Artifact(f"encoder-{self.run.id}", "model", description=card, metadata=facts)
            artifact.add_file(str(path))
            self.run.log_artifact(artifact)

    def report(self, head: list[str], rows: list[list[str]], figures: dict[str, Any]) -> None:
        """What a sweep has found: a table, and Plotly figures by title as interactive charts."""
        charts = {f"report/{title}": self._wandb.Plotly(figure) for title, figure in figures.items()}
        self.run.log({"report/table": self._wandb.Table(columns=head, data=rows)} | charts)

    def state(self) -> dict:
        """The run's id, so that a resumed job continues the same run."""
        return {"id": self.run.id}

    def close(self, failed: bool = False) -> None:
        """Finish the run, with a failing exit code if it failed."""
        try:
            self.run.finish(exit_code=1 if failed else 0)
        except Exception:
            with contextlib.suppress(Exception):
                self._wandb.teardown()  # a service that died would take the next job's run with it
            raise


def _given(option: object, variable: str) -> str | None:
    """An option as text; where it is not given, what the environment says."""
    return (os.environ.get(variable) or None) if option is None else str(option)
