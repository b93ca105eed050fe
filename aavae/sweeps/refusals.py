"""What a sweep refuses before anything is begun: launchers that cannot work, and jobs that would be the same."""

import shutil
from collections import Counter

from omegaconf import DictConfig

from aavae.errors import UserError
from aavae.runs.identity import identity
from aavae.sweeps.grid import Grid

SLURM = ".SlurmLauncher"  # submitit's


def refuse_helpers(node: DictConfig) -> None:
    """Raise UserError for settings of launchers and sweepers that cannot work."""
    n_jobs, launcher = node.launcher.get("n_jobs"), str(node.launcher.get("_target_"))
    if "aavae" in launcher and not (n_jobs is None or (isinstance(n_jobs, int) and n_jobs > 0)):
        raise UserError(f"hydra.launcher.n_jobs must be 1 or more, or null, not {n_jobs}")
    if launcher.endswith(SLURM):
        _refuse_slurm(node.launcher.timeout_min, node.launcher.get("signal_delay_s", 0))
    direction = str(node.sweeper.get("direction", "maximize")).removeprefix("Direction.")
    if direction != "maximize":
        raise UserError("a score is maximised: choose hydra/sweeper=search, or add hydra.sweeper.direction=maximize")


def _refuse_slurm(minutes: object, delay: object) -> None:
    if not shutil.which("srun"):
        raise UserError("there is no Slurm here: srun is not found; hydra/launcher=processes runs jobs on this machine")
    if isinstance(minutes, int) and isinstance(delay, int) and 60 * minutes <= delay + 60:
        raise UserError(
            f"hydra.launcher.timeout_min={minutes} leaves a job no time to train: Slurm tells it to save "
            f"hydra.launcher.signal_delay_s={delay} seconds before its time is up, or up to a minute earlier; ask for "
            f"{delay // 60 + 2} minutes or more"
        )


def refuse_twins(plans: list, grid: Grid) -> None:
    """Raise UserError where two jobs would be one run, or train the same model."""
    models: dict = {}
    for plan in [p for p in plans if not p.has_latent]:
        first = models.setdefault(identity(plan.config | {"latent_dim": None}), plan)
        if first.config["latent_dim"] != plan.config["latent_dim"]:
            raise UserError(
                f"{grid.name(first.overrides)} and {grid.name(plan.overrides)} would train the same model: "
                f"{plan.config['method']} has no latent; do not sweep latent_dim with it"
            )
    twice = [name for name, count in Counter(p.identity for p in plans).items() if count > 1]
    if twice:
        names = [grid.name(p.overrides) for p in plans if p.identity == twice[0]]
        raise UserError(
            f"{' and '.join(names[:2])} are one run, in one folder: a folder is not named after what is swept (epochs, "
            "probes, logging); sweep=lengths judges one run at several lengths, and where the schedule ends with the "
            "epochs, each length is a sweep of its own (sweep.name=)"
        )
