"""Signals that ask a process to stop: the first is answered, wherever it arrives; copies of it change nothing."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

from aavae.errors import Interrupted

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
AGAIN = 1.0  # seconds after which another Ctrl-C is a person's second one, and no copy of the first

Answer = Callable[[int, bool], None]  # told the signal, and whether it is the first


class Signals:
    """What was heard: `received` is the first of STOPS, None before.

    It is raised as Interrupted where it arrives, unless `held` or `answered_by` says otherwise. Schedulers, torchrun
    and terminals signal whole groups of processes, and one process more than once: so only another SIGINT (Ctrl-C),
    after a second, counts as a second signal, and kills at once.
    """

    def __init__(self):
        self.received: int | None = None
        self._since = 0.0
        self._answer: Answer = _raise

    def _hear(self, signum: int, frame: object) -> None:
        first = self.received is None
        if first:
            self.note(signum)
        elif signum != signal.SIGINT or time.monotonic() - self._since < AGAIN:
            return
        self._answer(signum, first)

    def note(self, signum: int) -> None:
        """Remember a signal, as if it had been received here: another process was sent it."""
        self.received, self._since = signum, time.monotonic()

    def check(self) -> None:
        """Raise Interrupted if a signal was received, as one that was held, or raised where nobody could see it."""
        if self.received is not None:
            raise Interrupted(self.received)

    @contextlib.contextmanager
    def answered_by(self, answer: Answer) -> Iterator[None]:
        """Within, signals are given to `answer`."""
        before, self._answer = self._answer, answer
        try:
            yield
        finally:
            self._answer = before

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within, a signal is noted only; it is raised at the end."""
        with self.answered_by(_say):
            yield
        self.check()

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Within, a signal is raised where it arrives, or at the beginning if it was there before."""
        self.check()
        with self.answered_by(_raise):
            yield
        self.check()


_current: Signals | None = None


@contextlib.contextmanager
def listening(to_the_end: bool = False) -> Iterator[Signals]:
    """Hear STOPS from here on; within another `listening`, its Signals.

    A SIGHUP that was inherited as ignored stays so, as under nohup. With `to_the_end` nothing but Ctrl-C is answered
    afterwards: all is done or saved, and a process that is about to end would seem to have been killed.
    """
    global _current
    if _current is not None:
        yield _current
        return
    _current = heard = Signals()
    heeded = [s for s in STOPS if not (s == signal.SIGHUP and signal.getsignal(s) is signal.SIG_IGN)]
    before = {s: signal.signal(s, heard._hear) for s in heeded}
    try:
        yield heard
    finally:
        for signum, handler in before.items():
            signal.signal(signum, _ignore if to_the_end and signum != signal.SIGINT else handler)
        _current = None


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Processes that are started within never receive STOPS: they are this one's to end, by SIGKILL.

    A signal that another thread of this process receives meanwhile is answered at the end, not between two of them.
    """
    late: list[tuple[int, bool]] = []
    heard = _current
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        with heard.answered_by(lambda *told: late.append(told)) if heard else contextlib.nullcontext():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for told in late:
        heard._answer(*told)  # type: ignore[union-attr]


def write(text: str) -> None:
    """Write to stderr from a handler, in which print could meet a print; a terminal that is gone is no error."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def end_by(signum: int) -> None:
    """End this process at once, as the signal would have."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _ignore(signum: int, frame: object) -> None:
    """No answer; unlike SIG_IGN, other programs do not inherit it."""


def _raise(signum: int, first: bool) -> None:
    if not first:
        end_by(signum)
    raise Interrupted(signum)


def _say(signum: int, first: bool) -> None:
    if not first:
        end_by(signum)
    write("\nstopping after this step; Ctrl-C again stops at once, losing the steps since the last save\n")
