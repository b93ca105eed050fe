"""One run in its folder: resume, banner, training, final evaluation, and the files that say what happened."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from aavae import __version__
from aavae.errors import Interrupted, UserError, mark_told
from aavae.loggers import Beginning, Loggers, name_for
from aavae.loggers.screen import Reporter, duration, results_tables, shown
from aavae.probes.guests import Evaluation, Results
from aavae.runs import status
from aavae.runs.config import asked_for, read_config
from aavae.runs.identity import identity
from aavae.runs.provenance import note, provenance
from aavae.runs.results import RESULTS, read_results, record
from aavae.runs.tidy import is_whole
from aavae.runtime import files, secrets, threads
from aavae.runtime.device import device_name, has_bf16_units
from aavae.runtime.signals import Signals, listening
from aavae.runtime.words import count, epochs, folded
from aavae.training.continuation import Continuation
from aavae.training.flops import training_flop
from aavae.training.loop import Loop
from aavae.training.trainer import Trainer
from aavae.weights import checkpoint, encoder_file
from aavae.weights.model_card import accuracies, card, facts
from aavae.weights.ready import resize_of

LATEST = "latest"


class Run:
    """A run of `trainer` in `folder`, judged by its guests and told to `logger`.

    `config` is the plain, resolved config, which goes into every checkpoint, and `to_yaml` makes its text; `command` is
    what the user types to continue, `typed` what was typed; `chosen` (the options of groups), `name` (of a job, or "")
    and `group` (the sweep) are for dashboards.
    """

    def __init__(
        self,
        trainer: Trainer,
        logger: Loggers,
        folder: Path,
        *,
        config: dict,
        to_yaml: Callable[[dict], str],
        resume: str,
        command: str,
        typed: str,
        chosen: dict,
        name: str,
        group: str | None,
    ):
        self.trainer, self.folder = trainer, folder
        self.logger = logger if trainer.processes.leads else Loggers({})
        self.config, self.to_yaml, self.resume = config, to_yaml, resume
        self.command, self.typed = command, typed
        self.chosen, self.group = chosen, group
        self.name = name or name_for(config["method"], trainer.dataset.name, folder)
        self._stage = "training"
        self._judged_by: dict = {}  # probes of before, with their settings
        self._flop: float | None = None  # of a training image
        self.reporter = Reporter(quiet=not trainer.processes.leads)
        self.facts: dict[str, Any] = {
            "config": self.config,
            "architecture": secrets.hidden(trainer.model.architecture),
            "data": trainer.dataset.fingerprint(),
            "version": __version__,
        }
        self._start = Continuation(trainer, folder, config, self.facts["data"], self.reporter)

    def go(self) -> float | None:
        """Train, evaluate, and return the score: the validation accuracy of h by the first probe that measures one; if
        none does, the score of the last validation.

        Raises UserError for a folder that cannot be continued, and Interrupted, after saving, for a signal.
        """
        leads = self.trainer.processes.leads
        with files.only_one(self.folder) if leads else contextlib.nullcontext(), listening() as signals:
            try:
                self._start.find(self.resume)
                self._judged_by = self._probes_before()
                if (records := self._finished()) is not None:
                    found = f"{shown(self.folder)} is finished ({epochs(self.trainer.epoch)})"
                    self.reporter.say(f"{found}; its results:" if records else f"{found}; no probe was asked for")
                    self.reporter.show(results_tables(records, self.trainer.model.start))
                    return self.trainer.score
                heart = status.Heart(self.folder, self._facts, self.trainer.step > 0, command=self.command)
                # Before anything is written: a logger that cannot start leaves nothing behind.
                origin = self._begin()
                self._work(heart, origin, signals)
            except KeyboardInterrupt as error:  # before the first step, or when all was done and loggers were closed
                if leads and not getattr(error, "said", False) and (self.folder / status.STATUS).exists():
                    with contextlib.suppress(UserError):
                        status.write(self.folder, "interrupted", f"stopped by {_name(error)}", ended=status.now())
                raise
        return self.trainer.score

    def _work(self, heart: status.Heart, origin: dict, signals: Signals) -> None:
        leads, logger, failed = self.trainer.processes.leads, self.logger, True
        try:
            self._say(heart, "running")
            if self.resume == "never":
                self._start.forget()
            judged_by = self.config["probe"]
            if self._keeps_results():
                judged_by = self._judged_by | judged_by
            else:
                self._start.remove(RESULTS)
            if self.trainer.step < self.trainer.total_steps:  # of fewer epochs
                self._start.remove(encoder_file.ENCODER)
            self._write("config.yaml", self.to_yaml(self.config | {"probe": judged_by}))
            if leads:
                note(self.folder, origin)
                self._point_to()
            with heart.beating() if leads else contextlib.nullcontext():
                self._banner()
                Loop(self.trainer, self.folder, logger, self.reporter, signals, self.facts).run()
                with contextlib.suppress(Interrupted), signals.raised():
                    if leads:
                        encoder = self._evaluate()
                # The others wait for it here: launchers end what has not ended some time after the first.
                if asked := self.trainer.processes.largest(signals.received or 0):
                    signals.note(asked)
                    raise Interrupted(asked)
            self._say(heart, "done")
            if leads:
                logger.encoder(self.folder / encoder_file.ENCODER, encoder, card(encoder))
            if leads and is_whole(self.folder / checkpoint.LAST):
                self._start.remove(checkpoint.PREVIOUS)
            failed = False
        except KeyboardInterrupt as error:
            self._say(heart, "interrupted", f"stopped by {_name(error)}")
            self.reporter.say(f"stopped at step {self.trainer.step:,}; continue with\n  {folded(self.command, 2)}")
            mark_told(error)
            raise
        except BaseException as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self._say(heart, "failed", f"{kind}{error}")
            raise
        finally:
            logger.close(failed)

    # ---- Beginning ------------------------------------------------------------------------------------------------

    def _begin(self) -> dict:
        """Start the loggers; returns the session's provenance."""
        t, seed = self.trainer, self.config["seed"]
        origin = {"step": t.step, "precision": t.precision.name}
        if t.processes.leads:
            clean_pass, batch = t.settings.clean_pass == "every_step", t.loader.batch_size
            self._flop = training_flop(t.model, t.dataset.image_size, clean_pass, batch)
            origin |= provenance(t.device, self.typed, seed, self.facts["data"], t.processes.world)
        self.logger.start(
            Beginning(
                self.folder,
                step=t.step,
                config=self.config,
                chosen=self.chosen,
                name=self.name,
                group=self.group,
                remembered=self._start.remembered,
                provenance=origin,
            )
        )
        return origin

    def _finished(self) -> list[dict] | None:
        """The results of a run that has nothing left to do: trained to the end, and judged by the probes asked for."""
        if not self._is_trained():
            return None
        asked = self.config["probe"]
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UserError):  # then it is evaluated again
            records = read_results(self.folder)
            # Results are written as they come; only a run that is done has all of them.
            done = (status.read(self.folder) or {}).get("state") == "done"
            encoder_file.read(self.folder / encoder_file.ENCODER)
            same_epoch = {r["epoch"] for r in records} == {self.trainer.epoch} or not (records or asked)
            if done and same_epoch and asked_for(asked, self._judged_by):
                return records
        return None

    def _probes_before(self) -> dict:
        """The probes, with their settings, that have judged all features now asked for, as far as its folder tells."""
        with contextlib.suppress(OSError, KeyError, AttributeError, TypeError, ValueError, UserError):
            before, done = read_config(self.folder), (status.read(self.folder) or {}).get("state") == "done"
            return dict(before["probe"]) if done and before["features"] == self.config["features"] else {}
        return {}

    def _is_trained(self) -> bool:
        began = self.resume != "never"  # or what the folder holds is of a run of before, even where there are no steps
        return began and self.trainer.step >= self.trainer.total_steps and self.trainer.closed

    def _keeps_results(self) -> bool:
        # What was found with these very weights by other probes, or by `aavae-evaluate`, still holds.
        with contextlib.suppress(UserError):  # damaged
            return self._is_trained() and {r["epoch"] for r in read_results(self.folder)} == {self.trainer.epoch}
        return False

    def _banner(self) -> None:
        t, cfg = self.trainer, self.config
        images, parameters = count(len(t.loader.split), "image"), sum(p.numel() for p in t.model.parameters())
        encoder = sum(p.numel() for p in t.model.encoder.parameters())
        several = f", {t.processes.world} processes" if t.processes.world > 1 else ""
        say = self.reporter.say
        say(f"method      {cfg['method']}, seed {cfg['seed']}")
        say(f"dataset     {t.dataset.name}: {images} for pretraining, {t.dataset.image_size}²")
        about = f", {t.model.about()}" if t.model.about() else ""
        say(f"model       {count(parameters, 'parameter')} ({encoder:,} in the encoder){about}")
        if t.model.start:
            say(f"start       {t.model.start}")
        hint, reduced, units = "", t.precision.dtype is not None, has_bf16_units(t.device)
        if units is not None and units != reduced:
            hint = f" (precision={'bf16' if units else 'fp32'} is faster on this CPU)"
        say(f"device      {device_name(t.device)}{several}, {t.precision.name}{hint}")
        if busy := threads.settle().busy:
            say(f"            {busy}")
        epochs_of = f"{count(cfg['epochs'], 'epoch')} of {t.loader.steps_per_epoch:,}"
        start = f", from step {t.step:,}" if t.step else ""
        say(f"training    {count(t.total_steps, 'step')}: {epochs_of}{start}")
        say(f"folder      {shown(self.folder)}")

    # ---- End ------------------------------------------------------------------------------------------------------

    def _evaluate(self) -> dict:
        """Save and judge the encoder; what its model card says."""
        self._stage = "evaluating"
        t, began = self.trainer, time.monotonic()
        representations = t.inspector.representations(lambda: t.untrained_encoder, self.reporter.track)
        saved = self._save_encoder(representations.encoder)
        results = Results(self.folder, self.logger, t.step, t.epoch, keep=True)
        evaluation = Evaluation(t.guests, representations, t.model, t.dataset, self.reporter, t.epoch)
        evaluation.run(results.add)
        if not t.dataset.labelled:
            loss, n, how = t.inspector.validation_loss()
            found = record("validation", t.model.judged_by, "pretrain_val", loss, n, how, "loss")
            results.add([found | {"epoch": t.epoch}])
            t.score = -loss
        if t.inspector.draw(self.folder / "reconstructions.png", t.epoch):
            self.logger.picture("reconstructions", self.folder / "reconstructions.png", t.step)
        self.logger.results(results.records)
        t.score = t.score if evaluation.score is None else evaluation.score
        if t.score is not None:
            self.logger.log({"score": t.score}, t.step, t.epoch)
        self.reporter.show(results_tables(results.records, t.model.start))
        self.reporter.say(f"evaluated in {duration(time.monotonic() - began)}; all in {shown(self.folder)}")
        return saved | {"results": accuracies(self.folder, t.epoch)}

    def _save_encoder(self, encoder: nn.Module) -> dict:
        t = self.trainer
        recalibrated = t.settings.clean_pass == "off"
        found = facts(
            t.model.encoder,
            self.facts["architecture"]["encoder"],
            "recalibrated on clean training images" if recalibrated else "running, of training",
            mean=t.dataset.mean,
            std=t.dataset.std,
            image_size=t.dataset.image_size,
            resize=resize_of(self.config["dataset"]) or t.dataset.image_size,
            method=self.config["method"],
            dataset=t.dataset.name,
            data=self.facts["data"],
            epochs=t.epoch,
            seed=self.config["seed"],
            start=t.model.start,
        )
        encoder_file.save(self.folder / encoder_file.ENCODER, encoder, found)
        return found

    # ---- Files ----------------------------------------------------------------------------------------------------

    def _write(self, name: str, text: str) -> None:
        if self.trainer.processes.leads:
            files.write(self.folder / name, text)

    def _point_to(self) -> None:
        """Let `latest`, beside a run whose folder nobody has named, lead to it."""
        link = self.folder.parent / LATEST
        if self.folder.name != identity(self.config) or self.group or (link.exists() and not link.is_symlink()):
            return
        temporary = link.with_name(f".{LATEST}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):  # a disk without links; `aavae-runs` finds the run all the same
            temporary.symlink_to(self.folder.name)
            os.replace(temporary, link)

    def _facts(self) -> dict:
        t, r = self.trainer, self.reporter
        return {
            "stage": self._stage,
            "step": t.step,
            "epoch": t.epoch,
            "epochs": t.settings.epochs,
            "score": t.score,
            "saved": t.saved,
            "flop": self._flop and self._flop * t.loader.batch_size * t.step,
            "devices": t.processes.world,
            "images_per_second": r.speed,
            "seconds_left": r.left,
            "warnings": list(t.health.said.values()),
        }

    def _say(self, heart: status.Heart, state: str, reason: str | None = None) -> None:
        # Where it fails or is stopped, that is what to tell, not that a full disk does not take it.
        quietly = contextlib.nullcontext() if reason is None else contextlib.suppress(UserError)
        if self.trainer.processes.leads:
            with quietly:
                heart.say(state, reason)


def _name(error: KeyboardInterrupt) -> str:
    return signal.Signals(getattr(error, "signum", signal.SIGINT)).name
