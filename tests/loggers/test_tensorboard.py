"""Numbers and pictures in TensorBoard, read back by TensorBoard's own reader."""

import io
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS

from aavae.errors import UserError
from aavae.loggers import Beginning, Loggers
from aavae.loggers.metrics_file import MetricsFile
from aavae.loggers.tensorboard import TensorBoard
from aavae.training.trainer import Trainer

RESULT = {"probe": "knn", "feature": "h", "split": "test", "metric": "accuracy", "value": 0.5, "n": 10}
RESULT |= {"protocol": "k=20 | cosine", "epoch": 3.0}
CONFIG = {"optimizer": {"lr": 1e-3, "name": "adam"}, "seed": 1, "deterministic": False, "clip": None, "device": "cpu"}


def started(folder, step=0, **kwargs):
    log = TensorBoard()
    log.start(Beginning(Path(folder), step, CONFIG, provenance={"seed": 1}, **kwargs))
    return log


def read(folder) -> EventAccumulator:
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(Path(folder) / "tensorboard"), size_guidance=everything).Reload()


def points(folder) -> dict[str, list[tuple[int, float]]]:
    events = read(folder)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def texts(folder, tag) -> list[str]:
    events = read(folder)
    assert events.SummaryMetadata(tag).plugin_data.plugin_name == "text"  # or it would not be shown
    return [e.tensor_proto.string_val[0].decode() for e in events.Tensors(tag)]


def close(value):
    return pytest.approx(value, rel=1e-6)  # float32


# ---- What is written ----------------------------------------------------------------------------------------------


def test_every_scalar_is_a_point_at_its_step_and_the_epoch_too(tmp_path, capfd):
    log = started(tmp_path)
    log.log({"train/loss": 4.0, "train/lr": 1e-30}, 10, 0.5)
    log.log({"train/loss": float("nan")}, 20, 1.0)
    log.log({"val/knn": 0.3}, 20, 1.0)
    assert capfd.readouterr() == ("", "")
    found = points(tmp_path)  # on disk before the file is closed
    log.close()
    assert found["train/lr"] == [(10, close(1e-30))] and found["val/knn"] == [(20, close(0.3))]
    assert found["train/loss"][0] == (10, 4.0) and math.isnan(found["train/loss"][1][1])
    assert found["epoch"] == [(10, 0.5), (20, 1.0)]
    assert found.keys() == {"train/loss", "train/lr", "val/knn", "epoch"}


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("RGBA", 4), ("L", 1)])
def test_a_picture_is_the_png_itself(tmp_path, mode, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, channels), dtype=np.uint8).squeeze()
    Image.fromarray(pixels).save(tmp_path / "p.png")
    log = started(tmp_path)
    for step in (5, 15):
        log.picture("similarity_h", tmp_path / "p.png", step)
    log.close()
    events = read(tmp_path)
    assert events.Tags()["images"] == ["similarity_h"]
    images = events.Images("similarity_h")
    assert [(i.step, i.width, i.height) for i in images] == [(5, 9, 6), (15, 9, 6)]
    assert (np.asarray(Image.open(io.BytesIO(images[0].encoded_image_string))) == pixels).all()


def test_results_are_scalars_and_a_table(tmp_path):
    log = started(tmp_path)
    log.log({"train/loss": 1.0}, 30, 3.0)
    log.results([RESULT, RESULT | {"split": "val", "value": 0.123456}])
    log.close()
    found = points(tmp_path)
    assert found["results/knn/h/test/accuracy"] == [(30, 0.5)]
    assert found["results/knn/h/val/accuracy"] == [(30, close(0.123456))]
    (table,) = texts(tmp_path, "results")
    head, _, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines())
    assert head == ["probe", "feature", "split", "metric", "value", "n", "protocol", "epoch"]
    assert rows == [
        ["knn", "h", "test", "accuracy", "0.5", "10", "k=20 \\| cosine", "3"],
        ["knn", "h", "val", "accuracy", "0.1235", "10", "k=20 \\| cosine", "3"],
    ]


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer:DeprecationWarning")
def test_the_table_is_one_to_tensorboard(tmp_path):
    from tensorboard.plugin_util import markdown_to_safe_html

    log = started(tmp_path)
    log.results([RESULT])
    log.close()
    html = markdown_to_safe_html(texts(tmp_path, "results")[0])
    assert "<td>k=20 | cosine</td>" in html and html.count("<th>") == len(RESULT)
    assert "<code" in markdown_to_safe_html(texts(tmp_path, "config")[0])


def test_nothing_judged_is_said(tmp_path):
    log = started(tmp_path)
    log.results([])
    log.close()
    assert texts(tmp_path, "results") == ["nothing was judged"]


def test_config_and_provenance_are_texts_and_what_decides_the_weights_are_hparams(tmp_path):
    log = started(tmp_path)
    log.close()
    for name, content in (("config", CONFIG), ("provenance", {"seed": 1})):
        (text,) = texts(tmp_path, name)
        assert text.startswith("```json\n") and text.endswith("\n```")
        assert json.loads(text.strip("`").removeprefix("json")) == content
    events = read(tmp_path)
    content = events.SummaryMetadata(hparams.SESSION_START_INFO_TAG).plugin_data.content
    start = hparams.parse_session_start_info_plugin_data(content)
    values = {name: getattr(v, v.WhichOneof("kind")) for name, v in start.hparams.items()}
    assert values == {"optimizer.lr": 1e-3, "optimizer.name": "adam", "seed": 1, "deterministic": False}
    content = events.SummaryMetadata(hparams.SESSION_END_INFO_TAG).plugin_data.content
    assert hparams.parse_session_end_info_plugin_data(content).status == STATUS_SUCCESS


@pytest.mark.parametrize(("failed", "job_type"), [(True, "pretrain"), (False, "evaluate")])
def test_only_a_training_that_reached_its_end_says_so(tmp_path, failed, job_type):
    log = started(tmp_path, job_type=job_type)
    log.close(failed)
    tags = read(tmp_path).Tags()["tensors"]
    assert hparams.SESSION_END_INFO_TAG not in tags
    assert (hparams.SESSION_START_INFO_TAG in tags) == (job_type == "pretrain")


# ---- Going on -----------------------------------------------------------------------------------------------------


def test_a_resumed_run_drops_what_lies_after_its_step(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    log = started(tmp_path)
    for step in (5, 10, 15, 20):
        log.log({"loss": 0.0}, step, step / 10)
        log.picture("p", tmp_path / "p.png", step)
    log.close(failed=True)
    log = started(tmp_path, step=10)
    assert points(tmp_path)["loss"] == [(5, 0.0), (10, 0.0)]
    log.log({"loss": 1.0}, 15, 1.5)
    log.close()
    assert points(tmp_path) == {
        "loss": [(5, 0.0), (10, 0.0), (15, 1.0)],
        "epoch": [(5, 0.5), (10, 1.0), (15, 1.5)],
    }
    assert [i.step for i in read(tmp_path).Images("p")] == [5, 10]


def test_a_fresh_run_starts_afresh(tmp_path):
    log = started(tmp_path)
    log.log({"old": 0.0}, 0, 0.0)
    log.close()
    (tmp_path / "tensorboard" / "notes.txt").touch()  # not ours
    log = started(tmp_path)
    log.log({"new": 0.0}, 5, 0.5)
    log.close()
    assert points(tmp_path).keys() == {"new", "epoch"}
    assert (tmp_path / "tensorboard" / "notes.txt").exists()


@pytest.mark.parametrize("step", [0, 10])
def test_an_evaluation_drops_nothing(tmp_path, step):
    log = started(tmp_path)
    log.log({"loss": 0.0}, 20, 2.0)
    log.close()
    log = started(tmp_path, step=step, job_type="evaluate")
    log.results([RESULT])
    log.close()
    found = points(tmp_path)
    assert found["loss"] == [(20, 0.0)] and found["results/knn/h/test/accuracy"] == [(step, 0.5)]


# ---- What goes wrong ----------------------------------------------------------------------------------------------


def test_without_the_package_there_is_one_sentence_and_nothing_else(train, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    monkeypatch.delitem(sys.modules, "aavae.loggers.event_file")
    with pytest.raises(UserError, match=r"logger=tensorboard needs `pip install 'aavae\[tensorboard\]'`"):
        TensorBoard()
    ended = train("trainer=debug", "logger=tensorboard", "hydra.run.dir=run")
    assert ended.code == 2 and "pip install" in ended.err and len(ended.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_gets_one_clear_message(tmp_path):
    (tmp_path / "tensorboard").touch()
    with pytest.raises(UserError, match=r"cannot write .*tensorboard: File exists"):
        started(tmp_path)


def test_a_full_disk_is_the_loggers_own_trouble(tmp_path, capfd):
    both = Loggers({"metrics": MetricsFile(), "tensorboard": TensorBoard()})
    both.start(Beginning(tmp_path))
    both.log({"loss": 1.0}, 1, 0.1)
    (file,) = (tmp_path / "tensorboard").iterdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, before[1]))
    try:
        for step in range(2, 5):
            both.log({"loss": 1.0}, step, step / 10)
        both.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "tensorboard failed ([Errno 27] File too large)" in said.err
    assert points(tmp_path)["loss"] == [(1, 1.0)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


ALONE = """
from pathlib import Path
from aavae.loggers import Beginning
from aavae.loggers.tensorboard import TensorBoard

log = TensorBoard()
log.start(Beginning(Path(".")))
log.log({"loss": 1.0}, 1, 0.1)
log.results([])
log.close()
"""


def test_tensorflow_is_left_alone(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    command = [sys.executable, "-W", "error", "-c", ALONE]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert points(tmp_path)["loss"] == [(1, 1.0)]


# ---- The real command ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_interrupted_and_resumed_run_holds_what_its_metrics_file_holds(train, monkeypatch):
    command = ("trainer=debug", "hydra.run.dir=run", "logger=tensorboard", "probe=knn", "features=[h]")
    step = Trainer.train_step

    def interrupted_step(self, *arguments, **named):
        terms = step(self, *arguments, **named)
        if self.step == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return terms

    monkeypatch.setattr(Trainer, "train_step", interrupted_step)
    assert train(*command).code == 128 + signal.SIGTERM
    monkeypatch.setattr(Trainer, "train_step", step)
    ended = train(*command)
    assert ended.code == 0 and "from step 10" in ended.out and ended.err == ""
    expected: dict[str, list] = {}
    for row in map(json.loads, Path("run/metrics.jsonl").read_text().splitlines()):
        for name in row.keys() - {"step", "epoch"}:
            expected.setdefault(name, []).append((row["step"], close(row[name])))
    for r in json.loads(Path("run/results.json").read_text()):
        expected[f"results/knn/h/{r['split']}/accuracy"] = [(16, close(r["value"]))]
    found = points("run")
    assert found.pop("epoch") == [(s, s / 8) for s in (4, 8, 10, 12, 16)]
    assert found == expected and found["train/loss"][-1][0] == 16 and "val/knn" in found
    images = read("run").Images("reconstructions")
    assert [i.step for i in images][:2] == [8, 16]
    assert images[-1].encoded_image_string == Path("run/reconstructions.png").read_bytes()
    assert json.loads(texts("run", "config")[0].strip("`").removeprefix("json"))["method"] == "aavae"
