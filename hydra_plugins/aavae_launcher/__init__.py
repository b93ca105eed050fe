"""Hydra's launcher `processes`: each job of a sweep of aavae in a process of its own."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class ProcessLauncher(Launcher):
    """Runs `n_jobs` jobs at a time; null: one for each GPU, or one.

    A job that raises, exits, is killed or runs out of memory harms no other. What fails returns None for a score.
    """

    def __init__(self, n_jobs: int | None = None):
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what `launch` needs."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one job for each list of overrides."""
        from aavae import build
        from aavae.errors import UserError
        from aavae.runs.sweep import Job

        if self.task.sweep is None:
            self.task.error = UserError("hydra/launcher=processes is for sweeps of aavae-train; leave it out")
            return []
        setup_globals()
        state = Singleton.get_state()  # of Hydra, which looking into a job's config changes
        jobs, configs, returns = [], [], []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id, config.hydra.job.num = str(number), number
            HydraConfig.instance().set_config(config)
            folder = Path(str(config.hydra.sweep.dir)).absolute() / str(config.hydra.sweep.subdir)
            name = self.task.sweep.name_of(list(overrides), folder)
            jobs.append(Job(number, list(filter_overrides(overrides)), folder, name))
            configs.append(build.plain(config))
            returns.append(JobReturn(overrides=overrides, cfg=config, hydra_cfg=config, working_dir=str(folder)))
        Singleton.set_state(state)
        try:
            outcomes = self.task.sweep.run(jobs, configs, self.n_jobs)
        except UserError as error:  # Hydra would show its traceback
            self.task.error = error
            return []
        for returned, outcome in zip(returns, outcomes, strict=True):
            returned.status, returned.return_value = JobStatus.COMPLETED, outcome.score
        return returns
