"""Where numbers and pictures go: `metrics.jsonl` always, Weights & Biases where asked for."""

import dataclasses
import json
import math
import os
import sys
from pathlib import Path

from aavae import files
from aavae.errors import UserError


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What a logger is told when a run starts or goes on: where, from which step, under which names."""

    folder: Path
    step: int = 0
    config: dict = dataclasses.field(default_factory=dict)
    name: str | None = None
    group: str | None = None
    remembered: dict = dataclasses.field(default_factory=dict)


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, `step` and `epoch` first."""

    def start(self, run: Beginning) -> None:
        """Open the file; what a resumed run wrote after its checkpoint is dropped, as it will be written again."""
        path, kept = run.folder / "metrics.jsonl", []
        if path.exists() and run.step > 0:
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= run.step:
                        kept.append(line)
                except (json.JSONDecodeError, KeyError):
                    break  # the line that was being written when the process died
        files.write(path, "".join(f"{line}\n" for line in kept))
        self._handle = open(path, "a", buffering=1)  # noqa: SIM115 (closed by close)

    def log(self, metrics: dict[str, float], step: int, epoch: float) -> None:
        """Append one line; what is not finite is written as null."""
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._handle.write(json.dumps({"step": step, "epoch": epoch} | finite) + "\n")

    def picture(self, name: str, path: Path, step: int) -> None:
        """Pictures are files of the run folder already."""

    def results(self, records: list[dict]) -> None:
        """Results have a file of their own."""

    def state(self) -> dict:
        """Nothing has to be remembered in a checkpoint."""
        return {}

    def close(self, failed: bool = False) -> None:
        """Close the file."""
        self._handle.close()


class WandB:
    """A Weights & Biases run; offline where nobody is logged in or the server cannot be reached, which is said once.

    Raises UserError for an unknown `mode`.
    """

    def __init__(
        self,
        project: str = "aavae",
        entity: str | None = None,
        mode: str | None = None,
        tags: list[str] | None = None,
        job_type: str = "pretrain",
    ):
        mode = mode or os.environ.get("WANDB_MODE")
        if mode not in (None, "online", "offline", "disabled"):
            raise UserError(f"logger.wandb.mode must be online, offline, disabled or null, not {mode!r}")
        self.mode = mode
        self.arguments = {"project": project, "entity": entity, "tags": tags, "job_type": job_type}

    def start(self, run: Beginning) -> None:
        """Begin the run, or continue the one the checkpoint remembers."""
        import wandb

        self._wandb, mode = wandb, self.mode
        arguments = self.arguments | {
            "dir": str(run.folder), "config": run.config, "name": run.name, "group": run.group,
            "id": run.remembered.get("id"), "resume": "allow" if run.remembered.get("id") else None,
            "reinit": "finish_previous",
        }  # fmt: skip
        wandb.setup(wandb.Settings(silent=True))
        if mode in (None, "online") and not wandb.login(prompt=False, verify=False):
            mode = "offline"
            print(f"Weights & Biases: not logged in; the run is kept in {run.folder / 'wandb'} for wandb sync")
        try:
            self.run = wandb.init(mode=mode, settings=self._settings(), **arguments)
        except (wandb.errors.CommError, wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            reason = str(error).splitlines()[0]
            print(f"Weights & Biases cannot be reached ({reason}); the run goes on offline", file=sys.stderr)
            self.run = wandb.init(mode="offline", settings=self._settings(), **arguments)
        self.run.define_metric("*", step_metric="step")

    def _settings(self):
        return self._wandb.Settings(silent=True, console="off", init_timeout=30)

    def log(self, metrics: dict[str, float], step: int, epoch: float) -> None:
        """Log scalars against `step`; not finite ones too, so that a dashboard shows where a run broke."""
        self.run.log(metrics | {"step": step, "epoch": epoch})

    def picture(self, name: str, path: Path, step: int) -> None:
        """Log an image file as a panel."""
        self.run.log({name: self._wandb.Image(str(path)), "step": step})

    def results(self, records: list[dict]) -> None:
        """Results as a table, and each value in the run's summary."""
        columns = list(records[0]) if records else []
        table = self._wandb.Table(columns=columns, data=[[r[c] for c in columns] for r in records])
        self.run.log({"results": table})
        for r in records:
            self.run.summary[f"{r['probe']}/{r['feature']}/{r['split']}/{r['metric']}"] = r["value"]

    def state(self) -> dict:
        """The run's id, so that a resumed job continues the same run."""
        return {"id": self.run.id}

    def close(self, failed: bool = False) -> None:
        """Finish the run, with a failing exit code if it failed."""
        self.run.finish(exit_code=1 if failed else 0)


class Loggers:
    """Several loggers as one, by name."""

    def __init__(self, loggers: dict):
        self._loggers = loggers

    def start(self, run: Beginning) -> None:
        """Start all; each is told what it had remembered in the checkpoint."""
        for name, logger in self._loggers.items():
            logger.start(dataclasses.replace(run, remembered=run.remembered.get(name, {})))

    def log(self, metrics: dict[str, float], step: int, epoch: float) -> None:
        """Log scalars everywhere."""
        for logger in self._loggers.values():
            logger.log(metrics, step, epoch)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Log an image file everywhere."""
        for logger in self._loggers.values():
            logger.picture(name, path, step)

    def results(self, records: list[dict]) -> None:
        """Log the final results everywhere."""
        for logger in self._loggers.values():
            logger.results(records)

    def state(self) -> dict:
        """What each logger wants remembered in a checkpoint, by its name."""
        return {name: logger.state() for name, logger in self._loggers.items()}

    def close(self, failed: bool = False) -> None:
        """Close all; a failing one does not keep the others open."""
        for logger in self._loggers.values():
            try:
                logger.close(failed)
            except Exception as error:  # the numbers are on disk; a logger's farewell must not fail the run
                print(f"closing {type(logger).__name__} failed: {error}", file=sys.stderr)
