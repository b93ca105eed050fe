"""The settings of the training loop, and what must hold of them."""

from dataclasses import dataclass

from aavae.errors import UserError, refuse_below


@dataclass(frozen=True)
class Settings:
    """How a model is trained; the names are those of the config. Raises UserError for values out of range.

    `clean_pass=every_step` runs the clean images through `model.clean` before each step, which moves BatchNorm's
    statistics as the released code does; with `off`, probes see a copy of the encoder with recalibrated statistics.

    `sync_batchnorm` has BatchNorm normalise with the statistics of the batch of all processes; None: where the loss
    is not a mean over images. `virtual_batch` has it normalise so many images at a time, as several processes without
    it do. `grad_checkpointing` computes what blocks computed again in the backward pass, which needs less memory.
    """

    epochs: int
    batch_size: int  # of all processes together
    seed: int
    accumulate: int = 1
    clip: float | None = None
    sync_batchnorm: bool | None = None
    virtual_batch: int | None = None  # images
    grad_checkpointing: bool = False
    clean_pass: str = "every_step"
    channels_last: bool = True
    compile: bool = False
    cuda_graphs: bool = False
    log_every: int = 50  # steps
    validate_every: int = 20  # epochs
    checkpoint_epochs: tuple[int, ...] = ()
    save_minutes: float = 5.0
    probe_every: int = 0  # epochs
    max_steps: int | None = None

    def __post_init__(self):
        refuse_below(
            {
                "epochs": (self.epochs, 0),
                "trainer.accumulate": (self.accumulate, 1),
                "trainer.log_every": (self.log_every, 1),
                "trainer.validate_every": (self.validate_every, 0),
                "trainer.save_minutes": (self.save_minutes, 0),
                "trainer.probe_every": (self.probe_every, 0),
                "trainer.max_steps": (self.max_steps or 0, 0),
                **{f"trainer.checkpoint_epochs[{i}]": (epoch, 1) for i, epoch in enumerate(self.checkpoint_epochs)},
            }
        )
        if self.clip is not None and not (isinstance(self.clip, int | float) and self.clip > 0):
            raise UserError(f"trainer.clip must be positive or null, not {self.clip}")
        if self.sync_batchnorm not in (None, True, False):
            raise UserError(f"trainer.sync_batchnorm must be true, false or null, not {self.sync_batchnorm!r}")
        if self.virtual_batch is not None and not (isinstance(self.virtual_batch, int) and self.virtual_batch > 1):
            raise UserError(f"trainer.virtual_batch must be 2 images or more, or null, not {self.virtual_batch}")
        if self.clean_pass not in ("every_step", "off"):
            raise UserError(f"trainer.clean_pass must be every_step or off, not {self.clean_pass!r}")

        if self.grad_checkpointing and self.compile:
            raise UserError("trainer.grad_checkpointing=true and trainer.compile=true cannot be used together")

    def synchronises(self, per_image: bool) -> bool:
        """Whether BatchNorm sees the batch of all processes, with a loss that is a mean over images (`per_image`) or
        not."""
        return not per_image if self.sync_batchnorm is None else self.sync_batchnorm
