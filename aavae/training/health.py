"""What goes wrong in training and has a name: rules over what is logged anyway, each said once until it is well again.

A rule sees a line of metrics and answers True (wrong, for long enough), False (well), or None (it cannot tell). It asks
nothing of the device. docs/logging.md has a table of the thresholds, from which healthy runs of all methods keep away.
"""

from collections import deque
from statistics import fmean, median
from typing import NamedTuple, Protocol

# Of `spread`, 0 where all images have one vector. Heads without normalisation (DINO's) begin near 0.1 and learn at
# 0.03; what has collapsed is orders of magnitude below.
COLLAPSED = 0.01
# Of `rank`, the number of directions in which the vectors vary: what stays on a line can hardly tell ten classes apart.
# MoCo and SwAV pass through ranks of 1.1 to 2 while they begin, so it must last.
LINE, LINE_LINES = 1.3, 20
# Of `sigma_mean`: a thousand times the floor of σ; beside μ of any usual size such a noise is none.
NO_NOISE = 1e-3
# Of `mu_norm`: draws of N(0, I) have ‖z‖ = √D, 11 for 128 latents; digits end near 10.
FAR = 1000.0
# Of `active_units`: fewer than one latent varies between images.
NO_UNITS = 1.0
LINES = 3  # in a row that must be wrong: one may be an accident, and a collapse is no less true three lines later
LOOKS = 2  # in a row, of validations
# Lines, and steps, after the warm-up by which a loss must have moved. It is asked only until it has: a plateau later on
# is how most trainings end.
FLAT_LINES, FLAT_STEPS, BLOCKS = 20, 500, 5
# Times the standard error of a block's mean: five such means of mere noise are hardly ever further apart.
NOISE = 6.0
# Of the median of the images/s before. Several lines in a row, and a minute: a pause, or a busy machine, is no fault.
SLOW, FAST_AGAIN = 0.5, 0.75
SLOW_LINES, SLOW_SECONDS, USUAL_LINES = 5, 60.0, 20


class Line(NamedTuple):
    """What was logged at a step: metrics by their names in metrics.jsonl."""

    step: int
    epoch: float
    metrics: dict[str, float]


class Rule(Protocol):
    """Something that can go wrong, under a `name`."""

    name: str

    def wrong(self, line: Line) -> bool | None:
        """Whether it goes wrong; None where the line does not tell."""

    def because(self, line: Line) -> str:
        """The number, the threshold and what to try, after `wrong` was True."""


class Bound:
    """A metric that must stay above `limit`, or below it, and does not on `lines` lines in a row.

    It is well again at twice (half) the limit: what hovers there is not said again and again. `text` has places for
    `{value}` and `{limit}`.
    """

    def __init__(self, name: str, metric: str, limit: float, text: str, *, above: bool, lines: int = LINES):
        self.name, self.metric, self.limit, self.text = name, metric, limit, text
        self.above, self.lines, self._count = above, lines, 0

    def wrong(self, line: Line) -> bool | None:
        """Whether the metric has been beyond the limit on enough lines."""
        value = line.metrics.get(self.metric)
        if value is None or value != value:
            return None
        if value < self.limit if self.above else value > self.limit:
            self._count += 1
            return True if self._count >= self.lines else None
        self._count = 0
        well = value >= 2 * self.limit if self.above else value <= self.limit / 2
        return False if well else None

    def because(self, line: Line) -> str:
        """The text, with the numbers."""
        return self.text.format(value=f"{line.metrics[self.metric]:.3g}", limit=f"{self.limit:g}")


class Flat:
    """A loss that has not moved, beyond its noise, since training began.

    The noise is that of neighbouring lines, by the median, so that neither a trend nor a jump counts as noise.
    """

    name = "flat"

    def __init__(self, warmup_steps: int):
        self.warmup_steps = warmup_steps
        self.losses: list[float] = []
        self.moved = False

    def wrong(self, line: Line) -> bool | None:
        """Whether the means of blocks of the losses so far are no further apart than noise would bring them."""
        loss = line.metrics.get("train/loss")
        if self.moved or loss is None or loss != loss:
            return False if self.moved else None
        self.losses.append(loss)
        since = line.step - self.warmup_steps
        after = len(self.losses) * since / line.step  # lines, which come at equal distances
        if since < FLAT_STEPS or after < FLAT_LINES:
            return None
        self.moved = self.movement() > 1
        if self.moved:
            self.losses = []
        return not self.moved

    def movement(self) -> float:
        """How far the means of blocks are apart, in units of what noise explains."""
        size = len(self.losses) // BLOCKS
        means = [fmean(self.losses[i * size : (i + 1) * size]) for i in range(BLOCKS)]
        # The median of |a − b| of two normal numbers is 0.954 standard deviations of one.
        noise = median(abs(a - b) for a, b in zip(self.losses, self.losses[1:], strict=False)) / 0.954
        least = 1e-6 * max(map(abs, means)) + 1e-12  # a loss that is one number has no noise
        return (max(means) - min(means)) / max(NOISE * noise / size**0.5, least)

    def because(self, line: Line) -> str:
        """Since when, and where it stands."""
        return (
            f"the loss, {line.metrics['train/loss']:.4g}, has moved no more than its noise explains "
            f"({self.movement():.2g} times, limit 1) since training began; optimizer.lr may be far too small, or "
            "far too large"
        )


class Slow:
    """Images/s below half of what they were before, for a minute. What validating, probing and saving take is not in
    them; the first epoch of a session, in which code is compiled and files are read first, does not count."""

    name = "speed"

    def __init__(self, batch_size: int, steps_per_epoch: int):
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self._usual: deque[float] = deque(maxlen=100)
        self._first: int | None = None
        self._last, self._lines, self._seconds = 0, 0, 0.0

    def wrong(self, line: Line) -> bool | None:
        """Whether it has been slow for long enough."""
        speed = line.metrics.get("images_per_second")
        if not speed:
            return None
        if self._first is None:
            self._first, self._last = line.step, line.step
        steps, self._last = line.step - self._last, line.step
        if line.step - self._first < self.steps_per_epoch:
            return None
        if len(self._usual) < USUAL_LINES or speed >= SLOW * median(self._usual):
            self._usual.append(speed)
            self._lines, self._seconds = 0, 0.0
            return False if speed >= FAST_AGAIN * median(self._usual) else None
        self._lines, self._seconds = self._lines + 1, self._seconds + steps * self.batch_size / speed
        return True if self._lines >= SLOW_LINES and self._seconds >= SLOW_SECONDS else None

    def because(self, line: Line) -> str:
        """How fast it is, and was."""
        speed, usual = line.metrics["images_per_second"], median(self._usual)
        return (
            f"{speed:,.0f} images/s, below {SLOW:g} of the {usual:,.0f} before, for {self._seconds:.0f} seconds; look "
            "for other programs on this machine, heat, or a slow disk (results are not affected)"
        )


def bounds() -> list[Rule]:
    """The rules that are a metric and a limit."""
    return [
        Bound(
            "collapse",
            "train/spread",
            COLLAPSED,
            "the compared vectors have collapsed (spread {value}, below {limit}; 0 where all images look alike to the "
            "loss); a smaller optimizer.lr often helps",
            above=True,
        ),
        Bound(
            "rank",
            "train/rank",
            LINE,
            "the compared vectors vary along one direction only (rank {value}, below {limit}); a smaller optimizer.lr "
            "or a larger batch_size often helps",
            above=True,
            lines=LINE_LINES,
        ),
        Bound(
            "noise",
            "train/sigma_mean",
            NO_NOISE,
            "the latent noise has vanished (mean σ {value}, below {limit}), so that z is μ; loss.beta=0.001 keeps it "
            "alive, and method=aavae_mean does without on purpose",
            above=True,
        ),
        Bound(
            "explosion",
            "train/mu_norm",
            FAR,
            "the latent codes explode (mean ‖μ‖ {value}, above {limit}); loss.beta=0.001 holds them, and a smaller "
            "optimizer.lr or trainer.clip=1 often helps",
            above=False,
        ),
        Bound(
            "latents",
            "val/active_units",
            NO_UNITS,
            "no latent tells validation images apart (active units {value}, below {limit}): a posterior collapse; a "
            "smaller loss.beta often helps",
            above=True,
            lines=LOOKS,
        ),
    ]


class Health:
    """The rules of a run, and what `said`: by name, the sentences about what is wrong now."""

    def __init__(self, batch_size: int, steps_per_epoch: int, warmup_steps: int):
        self.flat = Flat(warmup_steps)
        self.rules: list[Rule] = [*bounds(), self.flat, Slow(batch_size, steps_per_epoch)]
        self.said: dict[str, str] = {}

    def look(self, step: int, epoch: float, metrics: dict[str, float]) -> dict[str, str | None]:
        """What has changed with this line of metrics: by name, a sentence to say, or None for what is well again."""
        line, changed = Line(step, epoch, metrics), dict[str, str | None]()
        for rule in self.rules:
            wrong = rule.wrong(line)
            if wrong and rule.name not in self.said:
                said = f"warning: {rule.name} at step {step:,} (epoch {epoch:.4g}): {rule.because(line)}"
                changed[rule.name] = self.said[rule.name] = said
            elif wrong is False and rule.name in self.said:
                del self.said[rule.name]
                changed[rule.name] = None
        return changed

    def state(self) -> dict:
        """What a resumed run must know: what was said, and whether the loss has moved."""
        return {"said": dict(self.said), "losses": list(self.flat.losses), "moved": self.flat.moved}

    def restore(self, state: dict | None) -> None:
        """Go on where `state` was made; without one nobody knows how the loss began, and it is not judged."""
        state = state or {"said": {}, "losses": [], "moved": True}
        self.said, self.flat.losses, self.flat.moved = dict(state["said"]), list(state["losses"]), state["moved"]
