"""A logger that holds a run until it is asked to stop: `+logger.hold._target_=holding.Hold +logger.hold.step=8`."""

import time

from aavae.runtime import signals


class Hold:
    """Waits after `step`, once, until a signal has come, for at most `seconds`."""

    place = "held"

    def __init__(self, step: int, seconds: float = 150.0):
        self.step, self.seconds = step, seconds

    def start(self, run) -> None:
        """Leave a trace that the run has begun."""
        self.file = run.folder / self.place

    def log(self, metrics: dict, step: int, epoch: float) -> None:
        """Wait, and say by a file that it is so."""
        if step != self.step:
            return
        self.file.touch()
        until = time.monotonic() + self.seconds
        with signals.listening() as heard:
            while heard.received is None and time.monotonic() < until:
                time.sleep(0.05)

    def picture(self, *_) -> None:
        """Nothing."""

    def results(self, *_) -> None:
        """Nothing."""

    def state(self) -> dict:
        """Nothing."""
        return {}

    def close(self, failed: bool = False) -> None:
        """Nothing."""
