"""The outermost function, called as a user would: `train("experiment=digits", …)` in an empty folder."""

import gc
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import fault_table
import forked
import pytest
import torch

from aavae.runtime.signals import STOPS

gc.set_threshold(20_000, 10, 10)  # looking for garbage among thousands of tests took a tenth of the time
torch.set_num_threads(1)  # the networks are too small for two threads to pay

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(autouse=True)
def no_columns(monkeypatch):
    """Libraries leave COLUMNS behind, by which lines would be broken."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def signals_as_before():
    """A command ends its process, and leaves signals unanswered."""
    before = {signum: signal.getsignal(signum) for signum in STOPS}
    yield
    for signum, handler in before.items():
        if handler is not None:  # one that is not Python's
            signal.signal(signum, handler)


@pytest.fixture(scope="session", autouse=True)
def quick_beginning():
    """What is composed and counted before it trains takes more than half of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        forked.begin_quickly(patch.setattr)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A test that injects a fault runs in `make test-faults`, wherever it is."""
    for item in items:
        if fault_table.row_of(item.nodeid):
            item.add_marker(pytest.mark.faults)


def pytest_terminal_summary(terminalreporter, config):
    """Say why tests were skipped, and how many examples of bad input were tried; or which faults were injected, and
    what came of them."""
    for why, n in Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])).items():
        terminalreporter.write_line(f"{n} skipped: {why.removeprefix('Skipped: ')}")
    if config.option.markexpr == "faults":
        reports = [report for some in terminalreporter.stats.values() for report in some]
        terminalreporter.write_line("\n".join(fault_table.lines(reports)))
        return
    ended = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "teardown":
                ended.update(dict(report.user_properties).get("examples", {}))
    if ended:
        counts = ", ".join(f"{n:,} {how}" for how, n in sorted(ended.items()))
        terminalreporter.write_line(f"faults: {ended.total():,} examples: {counts}")


@pytest.fixture
def injected(record_property):
    """How many faults came to which end; `fault_table` says so after all tests."""
    counter = Counter()
    yield counter
    record_property("examples", dict(counter))


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def command(main, name, tmp_path, monkeypatch, capsys):
    """The command `name ARGUMENTS` in this process and in `tmp_path`; gives exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Ended(ended.value.code, out, err)

    return run


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """`aavae-train ARGUMENTS`."""
    from aavae.train import main

    return command(main, "aavae-train", tmp_path, monkeypatch, capsys)


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """`aavae-evaluate ARGUMENTS`."""
    from aavae.evaluate import main

    return command(main, "aavae-evaluate", tmp_path, monkeypatch, capsys)


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """`aavae-convert ARGUMENTS`."""
    from aavae.convert import main

    return command(main, "aavae-convert", tmp_path, monkeypatch, capsys)


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    """`aavae-runs ARGUMENTS`."""
    from aavae.manage import main

    return command(main, "aavae-runs", tmp_path, monkeypatch, capsys)


@pytest.fixture
def embed(tmp_path, monkeypatch, capsys):
    """`aavae-embed ARGUMENTS`."""
    from aavae.embed import main

    return command(main, "aavae-embed", tmp_path, monkeypatch, capsys)


@pytest.fixture
def quick_jobs(monkeypatch):
    """Sweeps are checked in this process, and their jobs need not import torch again."""
    from aavae.sweeps import pool, preflight

    monkeypatch.setattr(preflight, "preflight", preflight._examine)
    monkeypatch.setattr(preflight, "_speed", lambda *_: 1e9)
    monkeypatch.setattr(pool, "subprocess", SimpleNamespace(Popen=forked.Popen, PIPE=subprocess.PIPE))
    monkeypatch.setattr(pool, "TICK", 0.05)


@pytest.fixture
def shared():
    """The folder with CIFAR-10 and the parity files beside the checkout; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not here")
    return SHARED
