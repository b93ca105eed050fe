"""Entry: config → objects → a `Run`: training, probes → the score a sweep optimises (`aavae-train`)."""

import contextlib
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from aavae import build
from aavae.command import Command, chosen
from aavae.config.sources import register
from aavae.errors import UserError
from aavae.runs import sweep as sweeps
from aavae.runs.identity import identity
from aavae.runtime import secrets, slurm, threads
from aavae.runtime.output import complain
from aavae.sweeps.grid import swept_by
from aavae.sweeps.sweep import Multirun


class Train(Command):
    """The command `aavae-train`."""

    name, module, primary = "aavae-train", "aavae.train", "config"

    def register_resolvers(self, overrides: list[str]) -> None:
        """Names of folders in the config: the identity of a run, and a hash of a sweep's overrides."""

        def sweep(*, _root_: DictConfig) -> str:
            return _root_.sweep.name or hashlib.sha256("\n".join(swept_by(overrides)).encode()).hexdigest()[:10]

        def named(*, _root_: DictConfig) -> str:
            return identity(build.plain(_root_))

        register("aavae_sweep", sweep)
        register("aavae_identity", named)

    def execute(self, argv: list[str]) -> int:
        """As every command; and `sweep.resume=FOLDER` launches a sweep as it was launched before."""
        if resumed := [word for word in argv if word.startswith("sweep.resume=")]:
            return self._resume(Path(resumed[0].split("=", 1)[1]).expanduser(), [w for w in argv if w not in resumed])
        several = [word for word in argv if word.startswith("sweep=") and word != "sweep=none"]
        if several and not {"-m", "--multirun", "--cfg", "-c"} & {*argv} and not any("sweep.name=" in w for w in argv):
            raise UserError(f"{several[0]} is for sweeps; add -m")
        return super().execute(argv)

    def _resume(self, folder: Path, others: list[str]) -> int:
        others = [word for word in others if word not in ("-m", "--multirun")]
        for word in others:
            if not word.startswith(("hydra.launcher.", "hydra/launcher=", "dry_run=")):
                raise UserError(f"sweep.resume= continues what was launched before, without {word}")
        codes = []
        for launch in sweeps.read(folder)["launches"]:
            if lost := [word for word in launch["overrides"] if secrets.HIDDEN in word]:
                raise UserError(
                    f"{folder} was launched with a secret, which is kept nowhere ({lost[0]}); type the sweep's command "
                    "again, and secrets as ${oc.env:VARIABLE}, which is kept as it is"
                )
            where = ["--config-dir", launch["config_dir"]] if launch["config_dir"] else []
            replaced = {word.split("=")[0] for word in others}
            given = [word for word in launch["overrides"] if word.split("=")[0] not in replaced]
            sys.argv[1:] = ["-m", *where, *given, *others, f"hydra.sweep.dir={build.quoted(str(folder))}"]
            try:
                codes.append(super().execute(sys.argv[1:]))
            except UserError as error:  # what was launched later may be possible all the same
                complain(f"{self.name}: {error}")
                codes.append(2)
        return max(codes)

    def multirun(self, overrides: list[str], config_dir: str | None) -> int:
        """Check all jobs, run them, and sum up."""
        return Multirun(self, overrides, config_dir).go()

    @contextlib.contextmanager
    def prepare(self, cfg: DictConfig) -> Iterator[tuple]:
        """Trainer and logger, in the process group that torchrun or srun describes."""
        slurm.describe_tasks()
        threads.settle()
        from aavae.runtime.device import pick_device
        from aavae.runtime.processes import processes

        with processes(pick_device(cfg.device)) as several:
            loggers = build.loggers(cfg)  # first: a missing package is said before images are read
            fresh = not build.continues(cfg, Path(self.folder))
            yield build.trainer(cfg, several, asked=build.asked(self.overrides), fresh=fresh), loggers

    def work(self, built: tuple, cfg: DictConfig, folder: Path, name: str, group: str | None) -> float | None:
        """Train, or go on training, and evaluate."""
        from aavae.training.run import Run

        config, (trainer, logger) = secrets.hidden(build.plain(cfg)), built
        return Run(
            trainer,
            logger,
            folder,
            config=config,
            to_yaml=build.to_yaml,
            resume=str(cfg.resume),
            command=self.typed(again=True),
            typed=self.typed(),
            chosen=chosen(config),
            name=name,
            group=group,
        ).go()

    def estimate(self, built: tuple) -> float:
        """Steps, time and memory."""
        from aavae.training.dry_run import print_estimate

        return print_estimate(built[0])


def main() -> None:
    """The command `aavae-train`."""
    Train().main()


if __name__ == "__main__":
    main()
