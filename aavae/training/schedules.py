"""Learning-rate schedules: pure functions of the step, so there is nothing to save and nothing to restore."""

import math
from dataclasses import dataclass

from aavae.errors import UserError

SHAPES = ("constant", "cosine", "linear")


@dataclass(frozen=True)
class Schedule:
    """Learning-rate factor per optimizer step: a linear warm-up from 0, then constant, cosine or linear to 0.

    `warmup_steps` and `total_steps` count optimizer steps. The first step has factor 0, as in the released code
    (docs/reproduction.md: lr·step/W).
    """

    shape: str
    warmup_steps: int
    total_steps: int

    def __post_init__(self):
        if self.shape not in SHAPES:
            raise UserError(f"schedule.shape must be one of {', '.join(SHAPES)}, not {self.shape!r}")

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.shape == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        progress = min(progress, 1.0)
        return 0.5 * (1 + math.cos(math.pi * progress)) if self.shape == "cosine" else 1 - progress

    @property
    def extendable(self) -> bool:
        """Whether more epochs only append steps: the past of a constant schedule does not depend on its end."""
        return self.shape == "constant"


def schedule(shape: str, warmup_epochs: float, steps_per_epoch: int, epochs: int) -> Schedule:
    """The schedule of a run of `epochs`, with a warm-up of warmup_epochs · steps_per_epoch steps, rounded.

    Raises UserError for an unknown shape or a negative warm-up.
    """
    if not 0 <= warmup_epochs < math.inf:
        raise UserError(f"schedule.warmup_epochs must be 0 or more, not {warmup_epochs}")
    return Schedule(shape, round(warmup_epochs * steps_per_epoch), epochs * steps_per_epoch)
