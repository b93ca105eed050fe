"""`aavae-runs`, as typed: which runs it finds and how it shows them, what it compares, and what it may remove."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from run_folders import a_run, a_sweep, record

from aavae.runs import status
from aavae.runs.results import read_results

ROOT = Path(__file__).resolve().parents[2]


def ago(**span) -> str:
    return (datetime.now().astimezone() - timedelta(**span)).isoformat(timespec="seconds")


@pytest.fixture
def several(tmp_path) -> Path:
    """Three runs in outputs, and a sweep of two in multirun."""
    typed = {"command": "aavae-train experiment=digits"}
    a_run(
        tmp_path / "outputs/3f9c01",
        record(value=0.9),
        said={"score": 0.8, "started": ago(hours=2), "epoch": 3.0} | typed,
    )
    a_run(
        tmp_path / "outputs/3fab02",
        record(value=0.7),
        said={"score": 0.6, "started": ago(days=3), "command": "aavae-train loss.beta=0.1"},
        loss__beta=0.1,
    )
    a_run(
        tmp_path / "outputs/77aa03",
        state="failed",
        said={
            "started": ago(days=9),
            "reason": "UserError: no images",
            "epoch": 1.0,
            "command": "aavae-train method=vae",
        },
        method="vae",
        epochs=7,
    )
    a_sweep(tmp_path / "multirun/dims", "latent_dim=8", "latent_dim=16")
    a_run(tmp_path / "multirun/dims/0", said={"score": 0.5, "started": ago(minutes=5)}, latent_dim=8)
    a_run(tmp_path / "multirun/dims/1", said={"score": 0.7, "started": ago(minutes=4)}, latent_dim=16)
    return tmp_path


def names(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if "/" in line.split(" ")[0]]


# ---- ls -----------------------------------------------------------------------------------------------------------


def test_runs_are_listed_the_newest_first_with_what_varies(runs, several):
    ended = runs("ls")
    assert ended.code == 0 and ended.err == ""
    assert names(ended.out) == [
        "multirun/dims/1", "multirun/dims/0", "outputs/3f9c01", "outputs/3fab02", "outputs/77aa03",
    ]  # fmt: skip
    head, _, first, *_ = ended.out.splitlines()
    assert head.split()[:4] == ["run", "age", "state", "score"] and {"latent_dim", "beta", "epochs"} <= set(
        head.split()
    )
    assert "sample" not in head and first.split()[1:4] == ["4m", "done", "0.7"] and "16" in first
    assert "failed" in ended.out and "1/7" in ended.out and "5 runs." in ended.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("state=done", 4),
        ("state!=done", 1),
        ("method=vae", 1),
        ("method=V*", 1),
        ("loss.beta>0.05", 1),
        ("loss.beta=0", 4),
        ("latent_dim<=16", 2),
        ("latent_dim<16 state=done", 1),
        ("since=1d", 3),
        ("since=2000-01-01", 5),
        ("age>1d", 2),
        ("score>=0.6", 3),
        ("outputs", 3),
        ("outputs multirun/dims/0", 4),
        ("dataset=digits", 5),
        ("name=3f*", 2),
    ],
)
def test_filters_choose(runs, several, words, expected):
    ended = runs("ls", *words.split())
    assert ended.code == 0 and len(names(ended.out)) == expected, ended.out


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("sort=score", "outputs/3f9c01"),
        ("sort=-score", "multirun/dims/0"),
        ("sort=age", "multirun/dims/1"),
        ("sort=-age", "outputs/77aa03"),
        ("sort=latent_dim", "multirun/dims/0"),
    ],
)
def test_the_order_is_chosen(runs, several, words, first):
    assert names(runs("ls", words).out)[0] == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("loss.bta=1", "none of these runs has 'loss.bta'; did you mean loss.beta?"),
        ("beta=1", "did you mean loss.beta?"),
        ("latent_dim<many", "'many' is not"),
        ("since=soon", "'soon' is no time; say 90m, 12h"),
        ("since<7d", "since is said with ="),
        ("tag<a", "tags are compared by = and !="),
        ("sort=bta", "none of these runs has 'bta'"),
        ("nowhere", "there is no folder nowhere"),
        ("--jsn", "unrecognized arguments: --jsn"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(runs, several, words, said):
    ended = runs("ls", words)
    assert ended.code == 2 and said in ended.err and ended.err.count("\n") == 1 and ended.out == ""


def test_nothing_found_is_said(runs, several, tmp_path, monkeypatch):
    ended = runs("ls", "method=byol")
    assert (ended.code, ended.out.strip()) == (1, "no run passes these filters")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    ended = runs("ls")
    assert ended.code == 2 and "there is no run in outputs or multirun" in ended.err
    assert runs().code == 2


def test_programs_get_all_of_it(runs, several):
    found = json.loads(runs("ls", "--json", "sort=score").out)
    assert len(found) == 5 and found[0]["folder"] == "outputs/3f9c01"
    assert found[0]["results"] == {"knn/h/test/accuracy": 0.9} and found[0]["config"]["loss.beta"] == 0.0
    assert found[0]["score"] == 0.8 and found[0]["dataset"] == "Digits" and found[0]["tags"] == []


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_a_terminal_is_never_too_narrow(several, width, monkeypatch):
    """Nothing is broken: a column is there whole, or it is named below."""
    from rich.console import Console

    from aavae.reports import listing, shelf

    monkeypatch.chdir(several)
    console = Console(width=width, force_terminal=True, record=True, highlight=False, file=open(os.devnull, "w"))  # noqa: SIM115
    found, _ = shelf.find([Path("outputs"), Path("multirun")])
    listing.show(found, console)
    console.file.close()
    table = console.export_text().split("5 runs.")
    lines = table[0].rstrip().splitlines()
    assert len(lines) == 7 and all(cell_len(line) <= width for line in lines)
    head = lines[0].split()
    assert head[:2] == ["run", "age"]
    for name in {"state", "score", "method", "latent_dim", "beta"} - set(head):
        assert name in " ".join(table[1].split()), name


def test_it_is_quick_and_asks_for_no_torch(several, tmp_path):
    code = (
        "import sys; sys.argv = ['aavae-runs', 'ls']; from aavae import manage\n"
        "try: manage.main()\nexcept SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'numpy', 'hydra', 'wandb', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=several, capture_output=True, text=True, env=env)
    assert ended.returncode == 0 and "5 runs." in ended.stdout, ended.stderr


# ---- One run, and two ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["outputs/3f9c01", "3f9c", "outputs/3f9", "@last"])
def test_a_run_is_called_by_its_folder_its_beginning_or_as_the_last(runs, several, name):
    status.write(several / "outputs/3f9c01", "done")  # heard of last
    for other in ("outputs/3fab02", "outputs/77aa03", "multirun/dims/0", "multirun/dims/1"):
        said = status.read(several / other) | {"updated": ago(hours=1)}
        (several / other / "status.json").write_text(json.dumps(said))
    ended = runs("show", name)
    assert ended.code == 0 and "folder      outputs/3f9c01" in ended.out, ended.err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("3f", "3f may be any of 2 runs: "),
        ("zz", "no run in outputs or multirun begins with 'zz'"),
        ("outputs/zz", "zz"),
    ],
)
def test_a_name_that_is_none_is_a_sentence(runs, several, name, said):
    ended = runs("show", name)
    assert ended.code == 2 and said in ended.err and ended.err.count("\n") == 1


def test_a_run_is_shown_against_its_preset(train, runs):
    small = ("experiment=digits", "trainer.max_steps=2", "probe=knn", "features=[h]", "trainer.validate_every=0")
    assert train(*small, "loss.beta=0.5", "model=autoencoder").code == 0
    text = runs("show", "outputs/latest").out
    assert "trained     aavae on digits, seed 0" in text and "command     " in text and "last.pt" in text
    assert "What differs from experiment=digits" in text and "loss.beta   0.5    0.0" in text
    assert "optimizer.lr" not in text and "kNN" in text and "aavae 0.1.0" in text
    assert not Path("outputs/latest/previous.pt").exists() and Path("outputs/latest/last.pt").exists()
    assert os.readlink("outputs/latest") == Path("outputs/latest").resolve().name
    assert len(names(runs("ls").out)) == 1  # the link is no second run
    assert train(*small, "loss.beta=0.5", "model=autoencoder").out.count("is finished") == 1


def test_two_runs_are_compared(runs, several):
    ended = runs("diff", "3f9c", "3fab")
    assert ended.code == 0
    lines = {line.split()[0]: line.split() for line in ended.out.splitlines() if line.strip()}
    assert lines["loss.beta"] == ["loss.beta", "0.0", "0.1"]
    assert lines["knn/h/test/accuracy"] == ["knn/h/test/accuracy", "0.9", "0.7", "-0.2"]
    assert "Code and machine are the same." in ended.out
    assert "All settings that decide the weights are equal." in runs("diff", "3f9c", "outputs/3f9c01").out


def test_results_of_different_protocols_are_not_subtracted(runs, several):
    path, measured = several / "outputs/3fab02/results.json", read_results(several / "outputs/3fab02")
    for change, expected in (
        ({}, "-0.2"), ({"protocol": "k=5, cosine"}, "†"), ({"n": 7}, "†"), ({"protocol": "k=5, cosine", "n": 7}, "†"),
    ):  # fmt: skip
        path.write_text(json.dumps([r | change for r in measured]))
        out = runs("diff", "3f9c", "3fab").out
        assert [line.split()[-1] for line in out.splitlines() if "knn/h/test" in line] == [expected]
        assert ("measured by different protocols" in out) == (expected == "†")


def test_code_is_compared(runs, several):
    for name, commit in (("3f9c01", "aaaa"), ("3fab02", "bbbb")):
        session = {"git": {"commit": commit * 10, "dirty": False}, "versions": {"torch": "2.11"}, "device": "a CPU"}
        (several / f"outputs/{name}/provenance.json").write_text(json.dumps([session]))
    out = runs("diff", "3f9c", "3fab").out
    assert "aaaaaaaaaa" in out and "bbbbbbbbbb" in out and "torch" not in out


def test_the_best_are_those_with_the_best_score(runs, several):
    ended = runs("best", "-n", "2")
    assert names(ended.out) == ["outputs/3f9c01", "multirun/dims/1"] and "validation images" in ended.out
    assert runs("best", "-n", "0").code == 2
    assert [r["score"] for r in json.loads(runs("best", "--json", "multirun").out)] == [0.7, 0.5]


# ---- Following ----------------------------------------------------------------------------------------------------


def test_a_finished_run_is_followed_to_its_end(runs, several):
    lines = [{"step": n, "epoch": n / 10, "train/loss": 5.0 - n} for n in range(1, 20)]
    (several / "outputs/3f9c01/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = runs("tail", "3f9c")
    assert ended.code == 0 and ended.out.splitlines()[-1] == "done" and len(ended.out.splitlines()) == 11
    assert "epoch 1.9  step 19  train/loss -14" in ended.out
    ended = runs("tail", "77aa")
    assert ended.code == 1 and ended.out.splitlines()[-1] == "failed: UserError: no images"


def test_a_running_run_is_followed_live(runs, several, monkeypatch):
    monkeypatch.setattr("aavae.manage.PAUSE", 0.01)
    folder = several / "outputs/3f9c01"
    metrics = folder / "metrics.jsonl"
    metrics.write_text('{"step": 1, "epoch": 0.1, "train/loss": 2}\n{"step": 2, "epo')
    status.write(folder, "running", seconds_left=60.0)

    def go_on() -> None:
        time.sleep(0.2)
        with open(metrics, "a") as handle:
            handle.write('ch": 0.2, "train/loss": 1}\n')
        time.sleep(0.2)
        status.write(folder, "done")

    writer = threading.Thread(target=go_on)
    writer.start()
    ended = runs("tail", "3f9c")
    writer.join()
    lines = ended.out.splitlines()
    assert ended.code == 0 and lines[0] == "epoch 0.1  step 1  train/loss 2" and lines[2] == "done"
    assert lines[1] == "epoch 0.2  step 2  train/loss 1  1m 00s left"


# ---- Writing about runs -------------------------------------------------------------------------------------------


def test_notes_and_tags_travel_with_the_run(runs, several):
    assert runs("note", "3f9c", "the", "one for Table 1").code == 0
    assert runs("tag", "3f9c", "paper", "good").out.strip() == "outputs/3f9c01: good paper"
    assert runs("tag", "3f9c", "--remove", "good").out.strip() == "outputs/3f9c01: paper"
    (several / "outputs/3f9c01").rename(several / "moved")
    text = runs("show", "moved").out
    assert "the one for Table 1" in text and "tags        paper" in text
    ended = runs("ls", "moved", "tag=paper")
    assert ended.code == 0 and "paper" in ended.out and "the one for Table 1" in ended.out
    assert runs("ls", "moved", "tag!=paper").code == 1
    assert runs("tag", "moved", "a=b").code == 2
    (several / "moved/notes.json").write_text("[")
    ended = runs("note", "moved", "x")
    assert ended.code == 2 and "notes.json is damaged" in ended.err


# ---- Tidying up ---------------------------------------------------------------------------------------------------


def with_weights(folder: Path, *names: str) -> None:
    for name in names:
        torch.save({"w": torch.zeros(1000)}, folder / name)


def test_what_can_go_is_said_and_goes_only_when_told(runs, several):
    done, failed = several / "outputs/3f9c01", several / "outputs/77aa03"
    with_weights(done, "last.pt", "previous.pt", "epoch_1.pt")
    with_weights(failed, "last.pt")
    before = sorted(several.rglob("*"))
    said = runs("prune").out
    assert sorted(several.rglob("*")) == before and "nothing was removed: add --yes" in said
    assert "outputs/3f9c01: the checkpoint before the last one" in said and "outputs/77aa03: the whole folder" in said
    assert runs("prune", "--yes", "--keep", "checkpoints").code == 0
    assert sorted(p.name for p in done.glob("*.pt")) == ["epoch_1.pt", "last.pt"] and not failed.exists()
    assert "freed" in runs("prune", "--yes").out and [p.name for p in done.glob("*.pt")] == ["last.pt"]
    assert "There is nothing to remove." in runs("prune").out


def test_the_only_copy_of_a_finished_run_s_weights_stays(runs, several):
    done = several / "outputs/3f9c01"
    with_weights(done, "previous.pt", "epoch_1.pt")
    assert runs("prune", "--yes").code == 0 and len(list(done.glob("*.pt"))) == 2  # no last.pt
    with_weights(done, "last.pt")
    data = bytearray((done / "last.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (done / "last.pt").write_bytes(data)
    assert runs("prune", "--yes").code == 0 and len(list(done.glob("*.pt"))) == 3  # a damaged one


@pytest.mark.parametrize("state", ["running", "interrupted", "pending"])
def test_what_is_not_finished_stays(runs, several, state):
    folder = several / "outputs/3f9c01"
    with_weights(folder, "last.pt", "previous.pt")
    status.write(folder, state)
    assert runs("prune", "outputs/3f9c01", "--yes").code == 0 and (folder / "previous.pt").exists()


def test_a_failed_run_that_somebody_wrote_about_stays(runs, several):
    assert runs("tag", "77aa", "why").code == 0 and runs("prune", "--yes").code == 0
    assert (several / "outputs/77aa03").exists()
    assert runs("prune", "--keep", "everything").code == 2


def test_a_busy_folder_is_left_and_said(runs, several):
    from aavae.runtime import files

    folder = several / "outputs/77aa03"
    with files.only_one(folder):
        code = "import sys; sys.argv = ['aavae-runs', 'prune', '--yes']; from aavae.manage import main; main()"
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run([sys.executable, "-c", code], cwd=several, capture_output=True, text=True, env=env)
    assert ended.returncode == 1 and "another process is busy in" in ended.stderr and folder.exists()
