"""Entry: a run or checkpoint → frozen encoder → probes → `results.json` (`aavae-evaluate`)."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from aavae import build
from aavae.command import Command, chosen
from aavae.config.sources import register
from aavae.errors import UserError
from aavae.runtime import secrets, threads


class Evaluate(Command):
    """The command `aavae-evaluate`."""

    name, module, primary = "aavae-evaluate", "aavae.evaluate", "evaluate"

    def register_resolvers(self, overrides: list[str]) -> None:
        """Where results go: the run folder, or a folder beside the checkpoint."""

        def evaluated(*, _root_: DictConfig) -> str:
            if _root_.checkpoint is None:
                return str(Path(str(_root_.run)).expanduser().absolute())
            path = Path(str(_root_.checkpoint)).expanduser().absolute()
            return str(path.parent / f"evaluate_{path.stem}")

        register("aavae_evaluated", evaluated)

    def check(self, cfg: DictConfig) -> None:
        """One of run= and checkpoint=, and there."""
        _path(cfg)

    @contextlib.contextmanager
    def prepare(self, cfg: DictConfig) -> Iterator:
        """The trained model, its images and the probes; what they cannot do is said now."""
        threads.settle()
        from aavae.probes.run import Judgement
        from aavae.runtime.device import pick_device, pick_precision
        from aavae.weights import released
        from aavae.weights.load import load_trained

        if strange := [name for name in cfg.trust if not isinstance(name, str)]:
            raise UserError(f"trust= takes names of modules, such as [my_package], not {strange[0]!r}")
        chosen = build.plain(cfg)
        # What a checkpoint of the released code was trained on, if it does not say: what it is judged on.
        named = released.name_of(chosen["dataset"].get("_target_"))
        trained = load_trained(_path(cfg), tuple(cfg.trust), dataset=named)
        device = pick_device(cfg.device)
        precision = pick_precision(cfg.precision or trained.config.get("precision", "auto"), device)
        loggers = build.loggers(cfg, metrics=False)
        elsewhere = (
            {} if "_target_" in chosen["dataset"] else {"data_dir": cfg.data_dir}
        )  # a dataset that is named reads data_dir from its own YAML
        dataset = trained.images(elsewhere | chosen["dataset"])
        augmentation = trained.augmentation(dataset, chosen["augmentation"])
        asked, own = build.asked(self.overrides), build.own_features(trained.model)
        guests = build.probes(cfg, build.images(dataset, device), asked, own)
        yield Judgement(trained, dataset, augmentation, guests, loggers, device, precision)

    def work(self, built, cfg: DictConfig, folder: Path, name: str, group: str | None) -> float | None:
        """Run the probes; what each finds is written at once."""
        config = secrets.hidden(build.plain(cfg))
        return built.go(folder, config=config, chosen=chosen(config), command=self.typed())


def _path(cfg: DictConfig) -> Path:
    if (cfg.run is None) == (cfg.checkpoint is None):
        raise UserError("say what to evaluate: run=FOLDER of a run, or checkpoint=FILE (one of them)")
    given = cfg.checkpoint if cfg.run is None else cfg.run
    if not isinstance(given, str) or not given:
        raise UserError(f"{given!r} is no path; a name of digits alone is written as ./NAME")
    path = Path(given).expanduser()
    if cfg.run is not None and not path.is_dir():
        raise UserError(f"there is no run folder {path}; a file is given as checkpoint=")
    if cfg.run is not None and not [*path.glob("*.pt"), *path.glob("encoder.safetensors")]:
        raise UserError(f"{path} is not a run folder: it holds no checkpoint and no encoder.safetensors")
    if cfg.checkpoint is not None and not path.is_file():
        raise UserError(f"there is no file {path}; a folder is given as run=")
    return path


def main() -> None:
    """The command `aavae-evaluate`."""
    Evaluate().main()


if __name__ == "__main__":
    main()
