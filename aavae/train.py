"""Entry: config → objects → `Trainer.fit` → probes → the score a sweep optimises (`aavae-train`)."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from aavae import build
from aavae.entry import Command
from aavae.identity import identity


class Train(Command):
    """The command `aavae-train`."""

    name, module, primary = "aavae-train", "aavae.train", "config"

    def register_resolvers(self, overrides: list[str]) -> None:
        """Names of folders in the config: the identity of a run, and a hash of a sweep's overrides."""

        def sweep(*, _root_: DictConfig) -> str:
            given = sorted(o for o in overrides if not o.startswith("hydra."))
            return _root_.sweep.name or hashlib.sha256("\n".join(given).encode()).hexdigest()[:10]

        def named(*, _root_: DictConfig) -> str:
            return identity(build.plain(_root_))

        OmegaConf.register_new_resolver("aavae_sweep", sweep, replace=True)
        OmegaConf.register_new_resolver("aavae_identity", named, replace=True)

    @contextlib.contextmanager
    def prepare(self, cfg: DictConfig) -> Iterator[tuple]:
        """Trainer and logger, in the process group that torchrun describes."""
        from aavae import runtime

        with runtime.processes(runtime.pick_device(cfg.device)) as processes:
            loggers = build.loggers(cfg)  # first: a missing package is said before images are read
            yield build.trainer(cfg, processes), loggers

    def work(self, built: tuple, cfg: DictConfig, folder: Path, name: str, group: str | None) -> float | None:
        """Train, or go on training, and evaluate."""
        from aavae.run import Run

        config = build.plain(cfg)
        return Run(
            *built,
            folder,
            config=config,
            config_yaml=build.to_yaml(config),
            resume=str(cfg.resume),
            command=self.typed(again=True),
            typed=self.typed(),
            name=name or config["method"],
            group=group,
        ).go()

    def estimate(self, built: tuple) -> float:
        """Steps, time and memory."""
        from aavae.estimate import print_estimate

        return print_estimate(built[0])


def main() -> None:
    """The command `aavae-train`."""
    Train().main()


if __name__ == "__main__":
    main()
