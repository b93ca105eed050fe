"""Where numbers and pictures go: metrics.jsonl, Weights & Biases (read back from its own file), figures, the screen."""

import contextlib
import io
import json
import re
import resource
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb_reader
from PIL import Image

from aavae import build
from aavae.errors import UserError
from aavae.loggers import Beginning, Loggers
from aavae.loggers.metrics_file import MetricsFile
from aavae.loggers.screen import Reporter, accuracy_table, duration
from aavae.loggers.wandb import WandB
from aavae.probes.guests import Picture, Results
from aavae.reports.figures import reconstruction_figure

RESULT = {"probe": "knn", "feature": "h", "split": "test", "metric": "accuracy", "value": 0.5, "n": 10}
RESULT |= {"protocol": "k=20", "epoch": 3.0}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def opened(folder, step=0):
    log = MetricsFile()
    log.start(Beginning(folder, step))
    return log


# ---- metrics.jsonl ------------------------------------------------------------------------------------------------


def test_every_line_is_json_with_step_and_epoch_first(tmp_path):
    log = opened(tmp_path)
    log.log({"train/loss": 1.5}, 10, 0.5)
    assert lines(tmp_path) == [{"step": 10, "epoch": 0.5, "train/loss": 1.5}]  # on disk before the file is closed
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text().startswith('{"step": 10, "epoch": 0.5,')


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_null(tmp_path, value):
    log = opened(tmp_path)
    log.log({"loss": value, "kl": 1.0}, 1, 0.1)
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)["loss"] is None


def test_a_resumed_run_drops_what_lies_after_its_step(tmp_path):
    log = opened(tmp_path)
    for step in (5, 10, 15, 20):
        log.log({"loss": 0.0}, step, step / 10)
    log.close()
    log = opened(tmp_path, step=10)
    log.log({"loss": 1.0}, 15, 1.5)
    log.close()
    assert [(m["step"], m["loss"]) for m in lines(tmp_path)] == [(5, 0.0), (10, 0.0), (15, 1.0)]


@pytest.mark.parametrize("half", [b'{"step": 12, "ep', b'{"epoch": 1.2}', b"\0\0\0\0", b"12", b"\xff\xfe"])
def test_a_half_written_last_line_is_dropped(tmp_path, half):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 5, "epoch": 0.5}\n{"step": 10, "epoch": 1.0}\n' + half)
    log = opened(tmp_path, step=20)
    log.log({}, 25, 2.5)
    log.close()
    assert [m["step"] for m in lines(tmp_path)] == [5, 10, 25]


def test_a_fresh_run_starts_a_fresh_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "epoch": 0.5}\n')
    opened(tmp_path).close()
    assert lines(tmp_path) == []


def test_an_evaluation_drops_nothing(tmp_path):
    log = opened(tmp_path)
    log.log({"loss": 0.0}, 20, 2.0)
    log.close()
    log = MetricsFile()
    log.start(Beginning(tmp_path, 10, job_type="evaluate"))
    log.close()
    assert [m["step"] for m in lines(tmp_path)] == [20]


@contextlib.contextmanager
def full_disk(room: int):
    """Files of this process cannot grow beyond `room` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_naming_the_file_and_the_next_run_drops_the_half_line(tmp_path):
    log = opened(tmp_path)
    log.log({"loss": 0.0}, 5, 0.5)
    with full_disk(60), pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: File too large"):
        log.log({"loss": 0.0}, 10, 1.0)
    log.close()
    assert (tmp_path / "metrics.jsonl").stat().st_size == 60
    opened(tmp_path, step=10).close()
    assert [m["step"] for m in lines(tmp_path)] == [5]


def test_a_folder_that_cannot_be_written_is_said_naming_the_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/metrics\.jsonl"):
        opened(tmp_path / "file")
    (tmp_path / "metrics.jsonl").mkdir()
    for step in (0, 1):
        with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl"):
            opened(tmp_path, step)
    assert not list(tmp_path.glob(".*.tmp"))


# ---- Several loggers ----------------------------------------------------------------------------------------------


class Recorder:
    """A logger that takes notes, writes a file, and fails where it is told to."""

    def __init__(self, breaks=(), place="recorder"):
        self.calls, self.breaks, self.place, self.indispensable = [], breaks, place, False

    def start(self, run):
        self.calls.append(("start", run))
        (run.folder / self.place).mkdir(exist_ok=True)
        (run.folder / self.place / "log").touch()
        if "start" in self.breaks:
            raise UserError("cannot start")

    def __getattr__(self, name):
        def note(*arguments, **named):
            self.calls.append((name, *arguments, *named.values()))
            if name in self.breaks:
                raise OSError("gone\nfor good")
            return {"id": len(self.calls)} if name == "state" else None

        return note


def test_loggers_tell_everyone_and_remember_by_name(tmp_path):
    one, two = Recorder(), Recorder()
    both = Loggers({"one": one, "two": two})
    both.log({"loss": 1.0}, 1, 0.5)
    both.picture("p", tmp_path / "p.png", 1)
    both.results([RESULT])
    assert both.state() == {"one": {"id": 4}, "two": {"id": 4}}
    assert one.calls == two.calls
    assert [c[0] for c in one.calls] == ["log", "picture", "results", "state"]


def test_one_failing_farewell_does_not_keep_the_others_open(capsys):
    broken, fine = Recorder(breaks=("close",)), Recorder()
    Loggers({"broken": broken, "fine": fine}).close(failed=True)
    assert fine.calls == [("close", True)]
    assert capsys.readouterr().err == "closing the logger broken failed (gone)\n"


def test_dashboards_get_names_of_at_most_128_characters_that_differ_where_the_long_ones_do(tmp_path):
    long = [f"{'encoder.kwargs.something=1,' * 10}seed={seed}" for seed in (0, 1)]
    given = []
    for name in (*long, "seed=0"):
        recorder = Recorder()
        Loggers({"dashboard": recorder}).start(Beginning(tmp_path, name=name, group=name))
        given.append(recorder.calls[0][1])
    assert [len(run.name) for run in given] == [128, 128, 6] and given[0].name != given[1].name
    assert given[0].name.startswith(long[0][:100]) and all(run.name == run.group for run in given)


def test_one_that_cannot_start_closes_the_others_and_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "before").touch()
    first, broken, last = Recorder(place="a"), Recorder(breaks=("start",), place="b"), Recorder(place="c")
    several = Loggers({"metrics": MetricsFile(), "first": first, "broken": broken, "last": last})
    with pytest.raises(UserError, match="cannot start"):
        several.start(Beginning(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["before"]
    assert first.calls[-1] == broken.calls[-1] == ("close", True)
    several.close(failed=True)
    assert [name for name, *_ in first.calls] == ["start", "close"]


def test_one_that_cannot_start_leaves_what_earlier_sessions_wrote(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError):
        Loggers({"a": Recorder(place="a"), "b": Recorder(("start",), "b")}).start(Beginning(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("moment", ["log", "picture", "results", "state"])
def test_one_that_fails_is_said_once_and_left_out(tmp_path, capsys, moment):
    broken, fine = Recorder(breaks=(moment, "close")), Recorder()
    both = Loggers({"broken": broken, "fine": fine})
    both.start(Beginning(tmp_path, remembered={"broken": {"id": "before"}}))
    for step in (1, 2):
        both.log({"loss": 1.0}, step, 0.5)
        both.picture("p", tmp_path / "p.png", step)
        both.results([RESULT])
        assert both.state().keys() == {"broken", "fine"}
    both.close()
    assert capsys.readouterr().err == "the logger broken failed (gone); the run continues without it\n"
    assert [name for name, *_ in fine.calls] == ["start", *["log", "picture", "results", "state"] * 2, "close"]
    assert [name for name, *_ in broken.calls].count(moment) == 1 and broken.calls[-1][0] == "close"


def test_one_that_is_gone_or_not_asked_for_this_time_is_still_remembered(tmp_path):
    broken = Recorder(breaks=("log",))
    both = Loggers({"broken": broken})
    both.start(Beginning(tmp_path, remembered={"elsewhere": {"id": "x"}}))
    assert both.state() == {"elsewhere": {"id": "x"}, "broken": {"id": 2}}
    both.log({}, 1, 0.1)
    assert both.state() == {"elsewhere": {"id": "x"}, "broken": {"id": 2}}


def test_the_metrics_file_is_not_left_out(tmp_path):
    fine = Recorder()
    both = Loggers({"metrics": MetricsFile(), "fine": fine})
    both.start(Beginning(tmp_path))
    with full_disk(10), pytest.raises(UserError, match=r"metrics\.jsonl"):
        both.log({"loss": 1.0}, 1, 0.5)
    with pytest.raises(TypeError):  # what is no number is a mistake of ours
        both.log({"loss": "high"}, 1, 0.5)
    both.close(failed=True)
    assert fine.calls[-1] == ("close", True)


@pytest.mark.parametrize("logger", ["[]", "none", "wandb", "tensorboard", "[wandb,tensorboard]"])
def test_every_choice_of_loggers_builds(logger):
    cfg = build.compose([f"logger={logger}"])
    build.loggers(cfg)
    names = [] if logger in ("[]", "none") else logger.strip("[]").split(",")
    assert list(cfg.logger) == names


def test_a_run_stops_when_its_metrics_cannot_be_written(train, monkeypatch):
    log, written = MetricsFile.log, []

    def on_a_disk_that_becomes_full(self, *arguments):
        with full_disk(1) if written else contextlib.nullcontext():
            log(self, *arguments)
        written.append(arguments)

    monkeypatch.setattr(MetricsFile, "log", on_a_disk_that_becomes_full)
    ended = train("trainer=debug", "hydra.run.dir=run", "epochs=1", "probe=[]")
    assert ended.code == 2 and "cannot write" in ended.err and "metrics.jsonl" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert json.loads(Path("run/status.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_a_run_goes_on_without_a_dashboard_that_fails(train, monkeypatch):
    log = WandB.log

    def breaks(self, metrics, step, epoch):
        if step > 4:
            raise ConnectionResetError("Connection lost")
        log(self, metrics, step, epoch)

    monkeypatch.setattr(WandB, "log", breaks)
    ended = train("trainer=debug", "hydra.run.dir=run", "epochs=1", "probe=[]", "logger=wandb")
    assert ended.code == 0
    assert ended.err == "the logger wandb failed (Connection lost); the run continues without it\n"
    assert lines(Path("run"))[-1]["step"] == 8
    steps = {row["step"] for row in wandb_reader.history(Path("run")) if "train/loss" in row}
    assert steps == {4} and wandb_reader.exit_code(Path("run")) == 0


# ---- Weights & Biases ---------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """Nobody is logged in, W&B's server is a socket that takes notes, and a prompt fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of W&B's own imports
        import wandb
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    for name in ("NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setattr(wandb.errors.term, "can_use_terminput", lambda: True)  # as in front of a person
    monkeypatch.setattr(wandb.errors.term, "terminput", lambda *_, **__: pytest.fail("W&B asked a question"))
    wandb.teardown()  # it reads the environment once a process
    yield server
    wandb.teardown()
    server.close()


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    import wandb

    yield
    wandb.teardown()


def start(folder, state=None, job_type="pretrain", **kwargs):
    folder.mkdir(exist_ok=True)
    log = WandB(**kwargs)
    names = {"name": "seed=1", "group": "sweep", "job_type": job_type, "provenance": {"seed": 1}}
    config = {"loss": {"beta": 0.0}, "batch_size": 256}
    log.start(Beginning(folder, config=config, remembered=state or {}, **names))
    return log


@pytest.mark.parametrize("job_type", ["pretrain", "evaluate"])
def test_wandb_holds_config_names_and_every_point(tmp_path, offline, capfd, job_type):
    log = start(tmp_path, tags=["a", 1], job_type=job_type)
    for step in range(1, 6):
        log.log({"train/loss": 1 / step}, 10 * step, step / 2)
    log.log({"train/loss": float("nan")}, 60, 3.0)
    log.close()
    (run,) = wandb_reader.of_kind(tmp_path, "run")
    assert (run.display_name, run.run_group, run.job_type, run.project) == ("seed=1", "sweep", job_type, "aavae")
    assert list(run.tags) == ["a", "1"] and run.notes == ""
    config = wandb_reader.config(tmp_path)
    del config["_wandb"]
    assert config == {"loss": {"beta": 0.0}, "batch_size": 256, "provenance": {"seed": 1}}
    points = wandb_reader.history(tmp_path)
    assert [(p["step"], p["epoch"]) for p in points] == [(10 * s, s / 2) for s in range(1, 7)]
    assert [p["train/loss"] for p in points[:5]] == pytest.approx([1 / s for s in range(1, 6)])
    assert np.isnan(points[5]["train/loss"])
    assert capfd.readouterr() == ("", "")  # no library chatter


def test_wandb_holds_pictures_and_results(tmp_path, offline):
    log = start(tmp_path)
    results = Results(tmp_path, Loggers({"wandb": log}), 5, 3.0)
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "png")
    records = [RESULT, RESULT | {"split": "val", "value": 0.25}]
    results.add(records, [Picture("similarity_h", png.getvalue())])
    log.results(records)
    log.close()
    assert wandb_reader.panels(tmp_path) == {"similarity_h": [5]}
    (picture,) = (tmp_path / "wandb").glob("*run-*/files/media/images/similarity_h*.png")
    assert picture.read_bytes() == png.getvalue()
    (table,) = (tmp_path / "wandb").glob("*run-*/files/media/table/*.json")
    table = json.loads(table.read_text())
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == records
    found = wandb_reader.summary(tmp_path)
    assert (found["knn/h/test/accuracy"], found["knn/h/val/accuracy"]) == (0.5, 0.25)


def test_nothing_judged_is_no_table(tmp_path, offline):
    log = start(tmp_path)
    log.results([])
    log.close()
    assert wandb_reader.history(tmp_path) == []


@pytest.mark.parametrize(("failed", "code"), [(True, 1), (False, 0)])
def test_a_failed_run_ends_with_a_failing_exit_code(tmp_path, offline, failed, code):
    log = start(tmp_path)
    log.close(failed)
    assert wandb_reader.exit_code(tmp_path) == code


def test_a_resumed_job_continues_its_run_quietly(tmp_path, offline, capfd):
    first = start(tmp_path / "a")
    remembered = first.state()
    first.close()
    second = start(tmp_path / "b", state=remembered)
    second.close()
    assert capfd.readouterr() == ("", "")
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert wandb_reader.of_kind(folder, "run")[0].run_id == remembered["id"]
    assert start(tmp_path / "c").state() != remembered


def test_an_unfinished_run_does_not_swallow_the_next_one_s_numbers(tmp_path, offline):
    start(tmp_path / "a").log({"loss": 1.0}, 1, 1)
    second = start(tmp_path / "b")
    second.log({"loss": 2.0}, 2, 2)
    second.close()
    assert [p["loss"] for p in wandb_reader.history(tmp_path / "a")] == [1.0]
    assert [p["loss"] for p in wandb_reader.history(tmp_path / "b")] == [2.0]


@pytest.mark.parametrize("mode", [None, "online"])
def test_not_logged_in_means_offline_without_a_prompt_or_a_connection(tmp_path, stranger, capfd, mode):
    log = start(tmp_path, mode=mode)
    log.log({"loss": 1.0}, 1, 0.5)
    log.close()
    assert wandb_reader.history(tmp_path)[0]["loss"] == 1.0
    with pytest.raises(BlockingIOError):  # nobody has called
        stranger.accept()
    said = capfd.readouterr()
    assert (said.out + said.err).strip().count("\n") == 0, said  # once, and no library chatter
    assert "Weights & Biases" in said.out + said.err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mode": "onlin"}, "mode must be online, offline"),
        ({"tags": "debug"}, r"tags must be a list, such as \[debug\]"),
        ({"tags": [""]}, "1 to 64 characters"),
        ({"tags": ["x" * 65]}, "1 to 64 characters"),
        ({"project": "a/b"}, "Invalid project name 'a/b'"),
    ],
)
def test_what_wandb_cannot_take_gets_one_clear_message(tmp_path, offline, capfd, settings, says):
    with pytest.raises(UserError, match=says) as error:
        start(tmp_path, **settings)
    assert len(str(error.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_a_key_that_cannot_be_one_gets_one_clear_message(tmp_path, stranger, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    with pytest.raises(UserError, match=r"40\+ characters.*logger\.wandb\.mode=offline"):
        start(tmp_path)
    assert capfd.readouterr() == ("", "")


DYING = """
import os, signal
from pathlib import Path
from aavae.loggers import Beginning, Loggers
from aavae.loggers.metrics_file import MetricsFile
from aavae.loggers.wandb import WandB

both = Loggers({"metrics": MetricsFile(), "wandb": WandB()})
both.start(Beginning(Path("a")))
children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
(service,) = [pid for pid in children if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]
os.kill(int(service), signal.SIGKILL)
for step in range(1, 100):
    both.log({"loss": 1.0}, step, 0.1)
both.close()
another = WandB()
another.start(Beginning(Path("b")))
another.log({"loss": 2.0}, 2, 2)
another.close()
"""


def test_a_service_that_dies_takes_neither_this_run_nor_the_next(tmp_path, offline):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    ended = subprocess.run([sys.executable, "-c", DYING], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout == ""
    # On a busy machine its death may be noticed only when it is to be closed.
    assert re.match(r"(the|closing the) logger wandb failed \(", ended.stderr) and ended.stderr.count("\n") == 1
    assert len(lines(tmp_path / "a")) == 99
    assert wandb_reader.history(tmp_path / "b")[0]["loss"] == 2.0


# ---- Pictures -----------------------------------------------------------------------------------------------------


def test_a_picture_has_its_rows_one_above_the_other(tmp_path):
    colours = {"original": (1.0, 0, 0), "view": (0, 1.0, 0), "reconstruction": (0, 0, 1.0)}
    rows = {label: torch.tensor(c).view(1, 3, 1, 1).expand(4, 3, 8, 8) for label, c in colours.items()}
    reconstruction_figure(tmp_path / "r.png", rows, "digits, epoch 3")
    pixels = np.asarray(Image.open(tmp_path / "r.png").convert("RGB")).astype(int)
    centres = []
    for colour in colours.values():
        line, column = np.nonzero((pixels == (np.array(colour) * 255).astype(int)).all(-1))
        assert column.max() - column.min() > 0.5 * pixels.shape[1]  # four columns
        centres.append(line.mean())
    assert centres == sorted(centres)


# ---- The screen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (45.4, "45s"),
        (59.6, "1m 00s"),
        (185, "3m 05s"),
        (3599.7, "1h 00m"),
        (7800, "2h 10m"),
        (356400, "4d 03h"),
    ],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_without_a_terminal_progress_is_plain_lines(capsys):
    reporter = Reporter(seconds=0.0)
    reporter.start(0, 100)
    reporter.update(50, "1.0/2", {"train/loss": 1234.5}, 4321.0)
    reporter.stop()
    (line,) = capsys.readouterr().out.splitlines()
    for word in ("epoch 1.0/2", "step 50/100", "loss 1234", "4,321 images/s", "left"):
        assert word in line
    assert "\x1b" not in line


def test_plain_lines_come_every_so_often_and_at_the_end(capsys):
    reporter = Reporter(seconds=30.0)
    reporter.start(0, 100)
    for step in range(10, 101, 10):
        reporter.update(step, "1/1", {"train/loss": 1.0}, 1.0)
    assert ["step 10/" in line or "step 100/" in line for line in capsys.readouterr().out.splitlines()] == [True, True]


@pytest.mark.parametrize("text", ["/data/[red]/run", "folder :smile: x", "x" * 300])
def test_what_is_said_is_printed_as_it_is(capsys, text):
    Reporter().say(text)
    assert capsys.readouterr().out == text + "\n"


def test_a_quiet_reporter_says_nothing(capsys):
    reporter = Reporter(quiet=True)
    reporter.start(0, 1)
    reporter.say("hello")
    reporter.update(1, "1/1", {"train/loss": 1.0}, 1.0)
    reporter.stop()
    assert capsys.readouterr().out == ""


def test_the_table_shows_test_accuracies_in_percent_with_their_spread(capsys):
    few = RESULT | {"probe": "few_label_1", "value": 0.7151}
    table = accuracy_table([
        RESULT, RESULT | {"split": "val", "value": 0.111}, RESULT | {"feature": "pixels", "value": 0.25},
        few, few | {"metric": "accuracy_sd", "value": 0.0213},
    ])  # fmt: skip
    Reporter().console.print(table)
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines()]
    assert ["kNN", "50.0", "25.0"] in rows and ["1-NN, 1 label", "71.5 ± 2.1", "–"] in rows
    assert "11.1" not in out
