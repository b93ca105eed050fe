"""One evaluation of a trained model in its folder: banner, probes, tables, and the files that say what was found."""

import time
from pathlib import Path

import torch

from aavae.augmentations.pipeline import Pipeline
from aavae.datasets import Dataset, same_images
from aavae.loggers import Beginning, Loggers, name_for
from aavae.loggers.screen import Reporter, duration, results_tables, shown
from aavae.probes.guests import Evaluation, Guest, Results
from aavae.probes.representations import Representations
from aavae.runs.provenance import note, provenance
from aavae.runs.results import RESULTS
from aavae.runtime import files
from aavae.runtime.device import Precision, device_name
from aavae.runtime.words import count, epochs
from aavae.weights.load import Trained


class Judgement:
    """What `guests` are to find out about a `trained` model on `dataset`, and which loggers are told."""

    def __init__(
        self,
        trained: Trained,
        dataset: Dataset,
        augmentation: Pipeline,
        guests: list[Guest],
        logger: Loggers,
        device: torch.device,
        precision: Precision,
    ):
        self.trained, self.dataset, self.augmentation, self.guests = trained, dataset, augmentation, guests
        self.logger, self.device, self.precision = logger, device, precision
        self.reporter = Reporter()
        self.at_home = trained.data is None or same_images(
            trained.data, dataset.fingerprint()
        )  # on the images it was trained on
        size, before = dataset.image_size, trained.image_size
        self.remark = f"images of {size}², trained on {before}²" if before not in (None, size) else ""
        for guest in guests:
            if guest.name in trained.learners and self.at_home:
                guest.probe.restore(trained.learners[guest.name], device)

    def go(self, folder: Path, *, config: dict, chosen: dict, command: str) -> float | None:
        """Run the probes in `folder`, writing what each finds at once; returns the score.

        Raises UserError if another process is busy in the folder.
        """
        began, t, folder = time.monotonic(), self.trained, self._place(folder)
        with files.only_one(folder):
            self._banner(folder)
            results = Results(folder, self.logger, t.step, t.epoch, keep=True)
            made = self._representations()
            evaluation = Evaluation(self.guests, made, t.model, self.dataset, self.reporter, t.epoch, self.remark)
            self._begin(folder, config, chosen, command, evaluation.checksum)
            failed = True
            try:
                evaluation.run(results.add)
                self.logger.results(results.records)
                failed = False
            except KeyboardInterrupt as error:
                found = f"what was found so far is in {shown(folder / RESULTS)}"
                self.reporter.say(f"stopped; {found if results.records else 'nothing was found yet'}")
                error.said = True  # type: ignore[attr-defined]  # which `exits.run` looks for
                raise
            finally:
                self.logger.close(failed)
        self.reporter.show(results_tables(results.records, t.start))
        self.reporter.say(f"evaluated in {duration(time.monotonic() - began)}; all in {shown(folder)}")
        return evaluation.score

    def _place(self, folder: Path) -> Path:
        # What is found on other images is not the run's: it would be counted, and printed, as if it were.
        if self.at_home:
            return folder
        apart = folder / f"{self.dataset.name}_{self.dataset.fingerprint()[:8]}"
        apart.mkdir(exist_ok=True)
        return apart

    def _representations(self) -> Representations:
        """What the probes compare, as at the end of training."""
        t, unknown = self.trained, {"clean_pass": "every_step", "recalibration_images": 10_000, "channels_last": True}
        settings = t.config.get("trainer", unknown)
        layout = torch.channels_last if settings["channels_last"] else torch.contiguous_format
        return Representations(
            # The layout of training, so that convolutions round as they did there.
            t.model.to(self.device, memory_format=layout),  # type: ignore[call-overload]  # of torch's stubs
            None if t.seed is None else t.untrained,
            self.dataset,
            self.augmentation,
            self.device,
            self.precision,
            recalibrates=settings["clean_pass"] == "off",
            recalibration_images=settings["recalibration_images"],
            track=self.reporter.track,
        )

    def _begin(self, folder: Path, config: dict, chosen: dict, command: str, checksum: str) -> None:
        t = self.trained
        origin = provenance(self.device, command, t.seed, self.dataset.fingerprint())
        asked = [guest.name for guest in self.guests]
        origin |= {
            "precision": self.precision.name,
            "evaluates": {"step": t.step, "checksum": checksum, "probes": asked},
        }
        sweep = next((p.name for p in folder.parents if (p / "multirun.yaml").exists()), None)
        self.logger.start(
            Beginning(
                folder,
                step=t.step,
                config=t.config | {"evaluation": config},
                chosen=chosen,
                name=name_for(t.method, self.dataset.name, folder),
                group=sweep,
                job_type="evaluate",
                provenance=origin,
            )
        )
        note(folder, origin)

    def _banner(self, folder: Path) -> None:
        t, say, data = self.trained, self.reporter.say, self.dataset
        seed = "" if t.seed is None else f", seed {t.seed}"
        parameters = sum(p.numel() for p in t.model.parameters())
        if t.start:
            say(f"start       {t.start}")
        splits = ("train", "val", "test") if data.labelled else ("pretrain_val",)
        say(f"model       {t.method}{seed}, {epochs(t.epoch)}, {count(parameters, 'parameter')}")
        say(f"dataset     {data.name}: {', '.join(f'{len(data[s]):,} {s}' for s in splits)} images")
        say(f"device      {device_name(self.device)}, {self.precision.name}")
        say(f"folder      {shown(folder)}")
        if t.note:
            say(t.note)
        if not self.at_home:
            say("note        these are not the images it was trained on")
        if self.remark:
            say(f"size        {self.remark}")
