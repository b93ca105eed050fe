"""Signals that ask to stop: heard once, at every stage, whoever else got them."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import image_files
import pytest
import torch

from aavae.errors import Interrupted
from aavae.loggers.metrics_file import MetricsFile
from aavae.runtime import signals
from aavae.runtime.signals import STOPS, listening
from aavae.training.trainer import Trainer
from aavae.training.validation import Inspector
from aavae.weights.checkpoint import LAST

DEBUG = ("trainer=debug", "hydra.run.dir=run", "probe=[]")
SENT = pytest.mark.parametrize("signum", STOPS, ids=lambda s: s.name)


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """Whatever started this process has had ignored."""
    before = {s: signal.signal(s, signal.SIG_DFL) for s in (signal.SIGINT, signal.SIGHUP)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def state() -> dict:
    return json.loads(Path("run/status.json").read_text())


def saved_step() -> int:
    return torch.load(Path("run") / LAST, weights_only=True)["step"]


def told(run: str) -> list[dict]:
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def sending(monkeypatch, where: type, method: str, signum: int, when=lambda self: True, after: bool = True) -> None:
    """`where.method` sends this process the signal, once, before or after what it does."""
    before, left = getattr(where, method), [signum]

    def also(self, *args, **kwargs):
        if not after and left and when(self):
            os.kill(os.getpid(), left.pop())
        value = before(self, *args, **kwargs)
        if after and left and when(self):
            os.kill(os.getpid(), left.pop())
        return value

    monkeypatch.setattr(where, method, also)


# ---- What is heard ------------------------------------------------------------------------------------------------


@SENT
def test_a_signal_is_raised_where_it_arrives_and_handlers_come_back(signum):
    before = {s: signal.getsignal(s) for s in STOPS}
    with pytest.raises(Interrupted, match=signum.name), listening():
        os.kill(os.getpid(), signum)
    assert {s: signal.getsignal(s) for s in STOPS} == before
    assert not issubclass(Interrupted, Exception)


@SENT
def test_a_signal_that_is_held_is_raised_at_the_end_and_copies_change_nothing(signum, capfd):
    done = []
    with pytest.raises(Interrupted, match=signum.name), listening() as heard, heard.held():
        for copy in (signum, *STOPS, signum):
            os.kill(os.getpid(), copy)
        assert heard.received == signum
        done.append(True)
    assert done and capfd.readouterr().err.count("stopping after this step") == 1


def test_a_signal_that_nobody_could_see_is_raised_at_the_next_look():
    with listening() as heard:
        with contextlib.suppress(Interrupted):  # as what is raised in a __del__ is lost
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted), heard.raised():
            raise AssertionError("not reached")


def test_only_a_second_ctrl_c_kills(monkeypatch):
    killed = []
    monkeypatch.setattr(signals, "end_by", killed.append)
    monkeypatch.setattr(signals, "AGAIN", 0.0)
    with pytest.raises(Interrupted), listening() as heard, heard.held():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert not killed
        os.kill(os.getpid(), signal.SIGINT)
        assert killed == [signal.SIGINT]


def test_what_nohup_ignores_stays_ignored_and_a_background_job_can_be_interrupted():
    for signum in (signal.SIGHUP, signal.SIGINT):  # as nohup and a script's & leave them
        signal.signal(signum, signal.SIG_IGN)
    with pytest.raises(Interrupted), listening() as heard:
        os.kill(os.getpid(), signal.SIGHUP)
        assert heard.received is None
        os.kill(os.getpid(), signal.SIGINT)


def test_after_the_end_only_ctrl_c_is_answered():
    before = {s: signal.getsignal(s) for s in STOPS}
    with listening(to_the_end=True):
        pass
    for signum in set(STOPS) - {signal.SIGINT}:  # each of which would kill this process
        os.kill(os.getpid(), signum)
    assert signal.getsignal(signal.SIGINT) == before[signal.SIGINT]
    ignored = "import signal; print(any(signal.getsignal(s) is signal.SIG_IGN for s in (15, 10, 12)))"
    assert subprocess.run([sys.executable, "-c", ignored], capture_output=True, text=True).stdout == "False\n"


# ---- At every stage -----------------------------------------------------------------------------------------------


@SENT
def test_in_training(train, monkeypatch, signum):
    sending(monkeypatch, Trainer, "train_step", signum, lambda t: t.step == 5)
    ended = train(*DEBUG)
    assert ended.code == 128 + signum
    assert (state()["state"], state()["reason"]) == ("interrupted", f"stopped by {signum.name}")
    assert saved_step() == 5


def test_while_images_are_read(train, monkeypatch):
    from aavae.datasets.synthetic import Synthetic

    sending(monkeypatch, Synthetic, "read", signal.SIGUSR2, after=False)
    ended = train(*DEBUG)
    assert (ended.code, ended.err) == (128 + signal.SIGUSR2, "aavae-train: interrupted\n")
    assert not Path("run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["validate", "representations"])
def test_while_it_is_validated_probed_or_evaluated(train, monkeypatch, method):
    arguments = ("trainer=debug", "trainer.probe_every=1", "probe=knn", "features=[h]", "epochs=2")
    assert train(*arguments, "hydra.run.dir=whole").code == 0
    for after in (False, True):
        with monkeypatch.context() as patch:
            sending(patch, Inspector, method, signal.SIGUSR1, after=after)
            ended = train(*arguments, "hydra.run.dir=run")
        assert ended.code == 128 + signal.SIGUSR1 and state()["state"] == "interrupted", ended.err
        assert saved_step() == state()["step"]
    assert train(*arguments, "hydra.run.dir=run").code == 0
    told = [
        [
            {k: v for k, v in json.loads(line).items() if k != "images_per_second"}
            for line in Path(run).read_text().splitlines()
        ]
        for run in ("run/metrics.jsonl", "whole/metrics.jsonl")
    ]
    assert told[0] == told[1]  # nothing twice, nothing missing


def test_while_loggers_are_closed(train, monkeypatch):
    sending(monkeypatch, MetricsFile, "close", signal.SIGHUP)
    assert train(*DEBUG).code == 128 + signal.SIGHUP
    assert (state()["state"], state()["reason"]) == ("interrupted", "stopped by SIGHUP")
    assert train(*DEBUG).code == 0 and state()["state"] == "done"


def test_a_run_that_goes_on_and_is_stopped_before_its_first_step_says_so(train, monkeypatch):
    sending(monkeypatch, Trainer, "train_step", signal.SIGTERM, lambda t: t.step == 5)
    assert train(*DEBUG).code == 128 + signal.SIGTERM
    sending(monkeypatch, MetricsFile, "start", signal.SIGUSR2)
    assert train(*DEBUG).code == 128 + signal.SIGUSR2
    assert state()["reason"] == "stopped by SIGUSR2" and saved_step() == 5


def test_report_and_convert_say_interrupted(convert, monkeypatch, tmp_path):
    from aavae import convert as module

    (tmp_path / "in").touch()
    monkeypatch.setattr(module, "convert", lambda **_: os.kill(os.getpid(), signal.SIGHUP))
    ended = convert("in", "out.pt")
    assert (ended.code, ended.err) == (128 + signal.SIGHUP, "aavae-convert: interrupted; nothing is written\n")


# ---- Workers that read images -------------------------------------------------------------------------------------

PHOTOS = (*DEBUG, "dataset=image_folder", "dataset.path=photos", "dataset.image_size=16", "dataset.in_memory=false")


@pytest.fixture
def streamed(train, tmp_path):
    """`aavae-train ARGUMENTS` on images that two workers read."""
    names = [f"photos/{name}/{i}.png" for name in "ab" for i in range(24)]
    image_files.save(tmp_path, names, height=16, width=16)
    more = ("dataset.workers=2", "batch_size=8", "trainer.validate_every=0", "trainer.log_every=1")
    return lambda *arguments: train(*PHOTOS, *more, *arguments)


@SENT
def test_a_signal_to_the_workers_too_stops_a_streamed_run_as_any(streamed, monkeypatch, signum):
    def tell_all(self) -> bool:
        if self.step == 2:
            assert multiprocessing.active_children()
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signum)
        return self.step == 2

    sending(monkeypatch, Trainer, "train_step", signum, tell_all)
    ended = streamed()
    assert ended.code == 128 + signum, ended.err
    assert state()["reason"] == f"stopped by {signum.name}" and saved_step() == 2
    assert not multiprocessing.active_children()


def test_a_signal_that_another_thread_receives_while_workers_start_leaves_none(streamed, monkeypatch):
    start, waiting, left = multiprocessing.Process.start, threading.Event(), [signal.SIGTERM]
    other = threading.Thread(target=waiting.wait)
    other.start()

    def also(self):
        start(self)
        if left:
            signal.pthread_kill(other.ident, left.pop())
            time.sleep(0.01)

    monkeypatch.setattr(multiprocessing.Process, "start", also)
    try:
        ended = streamed()
    finally:
        waiting.set()
    assert ended.code == 128 + signal.SIGTERM and "Exception ignored" not in ended.err, ended.err
    assert not left and not multiprocessing.active_children()


def test_a_worker_that_is_killed_fails_the_run_in_a_sentence_and_what_was_learned_is_saved(streamed, monkeypatch):
    step = Trainer.train_step

    def murder(self, *args, **kwargs):
        if self.step == 2:
            for worker in multiprocessing.active_children():
                worker.kill()
                worker.join()
            time.sleep(0.05)  # in the middle of a step torch would raise it here
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train_step", murder)
    ended = streamed()
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    assert "a process that reads images died (SIGKILL, as when memory runs out)" in ended.err
    assert state()["state"] == "failed" and saved_step() == state()["step"] == 3
    assert not multiprocessing.active_children()


ENDED = """
import os, sys, torch
from pathlib import Path
from aavae.datasets.store import Store
from aavae.datasets.streaming import StreamedSplit
store = Store(Path("photos"))
stream = StreamedSplit(store, store.names, None, 16, 16, 2).stream([[0], [1], [2]] * 100)
next(stream)
import multiprocessing
print(*(w.pid for w in multiprocessing.active_children()), flush=True)
kept = [stream]; kept.append(kept)  # in a cycle, as a traceback's frames
os.kill(os.getpid(), 9) if sys.argv[1] == "killed" else sys.exit(3)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exits", "killed"])
def test_workers_end_with_their_parent(streamed, how):
    ended = subprocess.run([sys.executable, "-c", ENDED, how], capture_output=True, text=True, timeout=60)
    assert ended.returncode == (3 if how == "exits" else -signal.SIGKILL), ended.stderr
    assert not ended.stderr
    pids = [int(pid) for pid in ended.stdout.split()]
    patience = time.monotonic() + 20  # torch's workers look after their parent every five seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < patience:
        time.sleep(0.05)
    assert pids and not any(Path(f"/proc/{pid}").exists() for pid in pids)
