"""Where numbers and pictures go: metrics.jsonl, Weights & Biases (read back from its own file), figures, the screen."""

import json
import socket
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from aavae.console import Reporter, accuracy_table, duration
from aavae.errors import UserError
from aavae.figures import reconstruction_figure
from aavae.loggers import Beginning, Loggers, MetricsFile, WandB

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


@pytest.mark.parametrize("half", ['{"step": 12, "ep', '{"epoch": 1.2}', "\0\0\0\0"])
def test_a_half_written_last_line_is_dropped(tmp_path, half):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "epoch": 0.5}\n{"step": 10, "epoch": 1.0}\n' + half)
    log = opened(tmp_path, step=20)
    log.log({}, 25, 2.5)
    log.close()
    assert [m["step"] for m in lines(tmp_path)] == [5, 10, 25]


def test_a_fresh_run_starts_a_fresh_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "epoch": 0.5}\n')
    opened(tmp_path).close()
    assert lines(tmp_path) == []


# ---- Several loggers ----------------------------------------------------------------------------------------------


class Recorder:
    def __init__(self, breaks=False):
        self.calls, self.breaks = [], breaks

    def __getattr__(self, name):
        def note(*arguments):
            self.calls.append((name, *arguments))
            if name == "close" and self.breaks:
                raise OSError("gone")
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
    broken, fine = Recorder(breaks=True), Recorder()
    Loggers({"broken": broken, "fine": fine}).close(failed=True)
    assert fine.calls == [("close", True)]
    assert "closing Recorder failed: gone" in capsys.readouterr().err


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


def start(folder, state=None, **kwargs):
    folder.mkdir(exist_ok=True)
    log = WandB(**kwargs)
    config = {"loss": {"beta": 0.0}, "batch_size": 256}
    log.start(Beginning(folder, config=config, name="seed=1", group="sweep", remembered=state or {}))
    return log


def records(folder):
    """The records of the one `.wandb` file below `folder`: LevelDB's log format around W&B's protocol buffers."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its service may still be writing after a run's end
    (path,) = (folder / "wandb").glob("*run-*/*.wandb")
    data, at, whole, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        end = at + 7 + int.from_bytes(data[at + 4 : at + 6], "little")
        whole, kind, at = whole + data[at + 7 : end], data[at + 6], end
        if kind in (1, 4):  # the whole record, or its last part
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def history(folder):
    rows = [r.history.item for r in records(folder) if r.WhichOneof("record_type") == "history"]
    return [{(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in row} for row in rows]


def run_record(folder):
    return next(r.run for r in records(folder) if r.WhichOneof("record_type") == "run")


def test_wandb_holds_config_names_and_every_point(tmp_path, offline, capfd):
    log = start(tmp_path, tags=["a"])
    for step in range(1, 6):
        log.log({"train/loss": 1 / step}, 10 * step, step / 2)
    log.log({"train/loss": float("nan")}, 60, 3.0)
    log.close()
    run = run_record(tmp_path)
    assert (run.display_name, run.run_group, run.job_type, run.project) == ("seed=1", "sweep", "pretrain", "aavae")
    config = {u.key: json.loads(u.value_json) for u in run.config.update}
    assert config["loss"] == {"beta": 0.0} and config["batch_size"] == 256
    points = history(tmp_path)
    assert [(p["step"], p["epoch"]) for p in points] == [(10 * s, s / 2) for s in range(1, 7)]
    assert [p["train/loss"] for p in points[:5]] == pytest.approx([1 / s for s in range(1, 6)])
    assert np.isnan(points[5]["train/loss"])
    assert capfd.readouterr() == ("", "")  # no library chatter


def test_wandb_holds_pictures_and_results(tmp_path, offline):
    Image.new("RGB", (4, 4)).save(tmp_path / "r.png")
    log = start(tmp_path)
    log.picture("reconstructions", tmp_path / "r.png", 5)
    log.results([RESULT, RESULT | {"split": "val", "value": 0.25}])
    log.close()
    logged = {}
    for row in history(tmp_path):
        logged |= row
    assert (logged["reconstructions/_type"], logged["step"]) == ("image-file", 5)
    (table,) = (tmp_path / "wandb").glob("*run-*/files/media/table/*.json")
    table = json.loads(table.read_text())
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == [
        RESULT,
        RESULT | {"split": "val", "value": 0.25},
    ]
    summary = [u for r in records(tmp_path) if r.WhichOneof("record_type") == "summary" for u in r.summary.update]
    summary = {(u.key or "/".join(u.nested_key)): json.loads(u.value_json) for u in summary}
    assert summary["knn/h/test/accuracy"] == 0.5


@pytest.mark.parametrize(("failed", "code"), [(True, 1), (False, 0)])
def test_a_failed_run_ends_with_a_failing_exit_code(tmp_path, offline, failed, code):
    log = start(tmp_path)
    log.close(failed)
    assert [r.exit.exit_code for r in records(tmp_path) if r.WhichOneof("record_type") == "exit"] == [code]


def test_a_resumed_job_continues_its_run_quietly(tmp_path, offline, capfd):
    first = start(tmp_path / "a")
    remembered = first.state()
    first.close()
    second = start(tmp_path / "b", state=remembered)
    second.close()
    assert capfd.readouterr() == ("", "")
    assert run_record(tmp_path / "a").run_id == run_record(tmp_path / "b").run_id == remembered["id"]
    assert start(tmp_path / "c").state() != remembered


def test_an_unfinished_run_does_not_swallow_the_next_one_s_numbers(tmp_path, offline):
    start(tmp_path / "a").log({"loss": 1.0}, 1, 1)
    second = start(tmp_path / "b")
    second.log({"loss": 2.0}, 2, 2)
    second.close()
    assert [p["loss"] for p in history(tmp_path / "a")] == [1.0]
    assert [p["loss"] for p in history(tmp_path / "b")] == [2.0]


@pytest.mark.parametrize("mode", [None, "online"])
def test_not_logged_in_means_offline_without_a_prompt_or_a_connection(tmp_path, stranger, capfd, mode):
    log = start(tmp_path, mode=mode)
    log.log({"loss": 1.0}, 1, 0.5)
    log.close()
    assert history(tmp_path)[0]["loss"] == 1.0
    with pytest.raises(BlockingIOError):  # nobody has called
        stranger.accept()
    said = capfd.readouterr()
    assert (said.out + said.err).strip().count("\n") == 0, said  # once, and no library chatter
    assert "Weights & Biases" in said.out + said.err


def test_an_unknown_mode_gets_one_clear_message(tmp_path, offline):
    with pytest.raises(UserError, match="mode"):
        start(tmp_path, mode="onlin")


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
    (mine,) = [line for line in out.splitlines() if "h (this run)" in line]
    assert "50.0" in mine and "71.5 ± 2.1" in mine
    (pixels,) = [line for line in out.splitlines() if "raw pixels" in line]
    assert "25.0" in pixels and "–" in pixels
    assert "11.1" not in out
