"""The paper's table and figures: which runs they need, what they make of them, and what they refuse."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import record
from scipy.stats import ttest_rel

from aavae import build
from aavae.errors import UserError
from aavae.reports.jobs import find_jobs
from aavae.runs import status
from aavae.runs.identity import identity
from aavae.sweeps import preflight
from experiments import artefact
from experiments.costs import ARTEFACTS as NAMED
from experiments.costs import artefact as of
from experiments.keep import keep
from experiments.paper import NAMES, PUBLISHED, QUOTED, SCALES
from experiments.runs import Runs
from experiments.significance import holm
from experiments.table1 import methods, own_recipe, setting
from experiments.work import flop_of_an_image

ROOT = Path(__file__).resolve().parents[2]


def settings(name: str, scale: str, dataset: str | None = None) -> list[tuple[str, tuple[str, ...]]]:
    """What an artefact trains: a dataset, and the overrides of each setting."""
    sweeps = of(name).sweeps(Runs(SCALES[scale], [], Path("none")))
    return [(s.dataset, (*s.fixed, f"{s.key}={v}")) for s in sweeps if dataset in (None, s.dataset) for v in s.values]


# ---- Which runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [s if s == "smoke" else pytest.param(s, marks=pytest.mark.slow) for s in SCALES])
@pytest.mark.parametrize("name", NAMED)
def test_every_setting_is_a_config(name, scale, tmp_path):
    runs = Runs(SCALES[scale], [], tmp_path)
    found = settings(name, scale)
    for dataset, fixed in (found[0], found[-1]):
        cfg = build.compose(runs.words(dataset, fixed))
        assert SCALES[scale].probe in cfg.probe


@pytest.mark.slow
def test_runs_that_artefacts_share_are_one(tmp_path):
    """Spec §3: 23 runs a seed on CIFAR-10 and 8 at the script's β; SimCLR's batch sizes are ours."""
    runs = Runs(SCALES["paper"], [], tmp_path)
    found = {}
    for name in ("figure2", "figure3", "figure4"):
        for dataset, fixed in settings(name, "paper", "CIFAR-10"):
            if "method=simclr" not in fixed:
                found.setdefault(identity(build.plain(build.compose(runs.words(dataset, fixed)))), []).append(fixed)
    assert len(found) == 23 + 8
    base = identity(build.plain(build.compose(runs.words("CIFAR-10", ("method=aavae",)))))
    assert base in found and len(found[base]) == 5  # β 0, a fixed width, batch 256, latent 128, decoder 50
    plain = identity(build.plain(build.compose(["experiment=cifar10"])))
    differ = build.plain(build.compose(runs.words("CIFAR-10", ())))["optimizer"]
    assert differ["lr"] == 0.00025 and plain != base  # the same training; that the rate follows the batch is said


def test_every_method_there_is_has_a_row(tmp_path, monkeypatch):
    found = methods(Runs(SCALES["smoke"], [], Path("none")))
    assert set(found) == set(build.options("method")) and found[: len(NAMES)] == list(NAMES)
    found = {fixed[-1] for _, fixed in settings("table1", "smoke")} | {
        word for _, fixed in settings("table1", "smoke") for word in fixed
    }
    assert {f"method={m}" for m in build.options("method")} <= found


@pytest.mark.parametrize("typed", [[], ["epochs=10"], ["++epochs=10"]], ids=" ".join)
def test_methods_compute_as_much_as_aavae_to_the_nearest_epoch(typed):
    runs = Runs(SCALES["digits"], typed, Path("none"))
    reference = (10 if typed else 20) * flop_of_an_image(tuple(runs.words("digits", ("method=aavae",))))
    for method in ("aavae", "simclr", "cpc", "mae"):
        recipe = own_recipe(runs, "digits", method)
        words = runs.words("digits", (*recipe, f"method={method}"))
        one, epochs = flop_of_an_image(tuple(words)), build.compose(words).epochs
        assert abs(epochs * one - reference) <= one / 2, method
    assert not any("epochs=" in word for word in own_recipe(Runs(SCALES["paper"], [], Path("x")), "CIFAR-10", "aavae"))


def test_the_paper_s_numbers_are_the_paper_s():
    text = Path(ROOT.parent / "shared/paper/aavae.txt")
    if not text.exists():
        pytest.skip("the paper's text is not here")
    printed = set(re.findall(r"\d\d\.\d\d", text.read_text()))
    own = [v for by in (*PUBLISHED.values(), *QUOTED.values()) for v in by.values()]
    assert {f"{value:.2f}" for value in own} <= printed


def test_the_user_s_word_counts_last(tmp_path):
    runs = Runs(SCALES["smoke"], ["epochs=1", "seed=3,4", "hydra.launcher.n_jobs=2"], tmp_path)
    words = runs.words("digits", ("method=ae",))
    assert words.count("epochs=1") == 1 and "epochs=4" not in words and runs.seed_values() == [3, 4]
    assert not [word for word in words if word.startswith(("hydra", "seed"))]


# ---- What they make of them ---------------------------------------------------------------------------------------


def pretend(runs: Runs, dataset: str, fixed: tuple[str, ...], value, **said) -> None:
    """Runs of a setting as if they were done; `value` gives the accuracy of a seed in %."""
    config = build.plain(build.compose(runs.words(dataset, fixed)))
    for seed in runs.seed_values():
        own = config | {"seed": seed}
        folder = runs.folder / identity(own)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(build.to_yaml(own))
        probe = runs.scale.probe
        found = [record(probe, value(seed) / 100), record(probe, 0.9, "pixels"), record(probe, 0.4, "h_untrained")]
        for metric in ("cos_within", "cos_between", "cos_within_centred", "cos_between_centred"):
            found.append(record("similarity", value(seed) / 200, "h", split="pretrain_val", metric=metric))
        (folder / "results.json").write_text(json.dumps([r | {"epoch": 4.0} for r in found]))
        lines = [
            {"step": 10 * e, "epoch": e, f"probe/{probe}/h/test/accuracy": value(seed) / 100 - 0.1 / e,
             "val/bpd_8bit": 8 - e / 9 + seed / 99 + value(seed) / 1e3, "train_eval/bpd_8bit": 7.5, "val/kl": 3.0,
             "images_per_second": 20 * config["batch_size"] / 450}  # 20 steps in 450 seconds
            for e in (2, 4)
        ]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        Image.new("RGB", (60, 40)).save(folder / "similarity_h.png")
        facts = {"seconds": 1800.0, "flop": 5e12, "epoch": 4.0, "score": 0.5} | said
        status.write(folder, "done", **facts)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder with the runs of every artefact at scale=smoke with three seeds, none of them trained."""
    runs = Runs(SCALES["smoke"], ["seed=0,1,2"], tmp_path_factory.mktemp("trained"))
    for n, (dataset, fixed) in enumerate(dict.fromkeys(s for name in NAMED for s in settings(name, "smoke"))):
        pretend(runs, dataset, fixed, lambda seed, n=n: 50 + n + seed**2)
    pretend(runs, "digits", ("method=aavae",), lambda seed: (70.0, 71.0, 75.0)[seed])
    pretend(runs, "digits", ("method=vae", "loss.beta=1"), lambda seed: 40.0 + seed, score=0.6)
    pretend(runs, "digits", ("method=ae",), lambda seed: (60.0, 62.0, 63.0)[seed])
    return runs.folder


@pytest.fixture
def done(trained, tmp_path, monkeypatch) -> Runs:
    """Those runs where artefacts look for them; nothing can be launched."""
    monkeypatch.chdir(tmp_path)
    folder = Path("multirun/paper_smoke").absolute()
    shutil.copytree(trained, folder)
    monkeypatch.setattr("experiments.runs._launch", lambda words: pytest.fail(f"launched {words}"))
    monkeypatch.setattr("experiments.runs.is_done", lambda folder, config: (folder / "results.json").exists())
    return Runs(SCALES["smoke"], ["seed=0,1,2"], folder)


def made(name: str, *words: str) -> tuple[list[dict], str]:
    """The rows of an artefact's CSV, and its Markdown."""
    assert artefact.make(of(name), ["scale=smoke", "seed=0,1,2", *words]) == 0
    folder = Path("outputs/paper/smoke")
    with open(folder / f"{name}.csv", newline="") as handle:
        return list(csv.DictReader(handle)), (folder / f"{name}.md").read_text()


def test_table1_has_means_floors_and_the_printed_numbers(done):
    rows, text = made("table1")
    by_name = {row["method"]: row for row in rows}
    measured, printed = "digits: kNN, measured", "CIFAR-10: printed in the paper"
    assert by_name["AAVAE"][measured] == f"72.0 ± {np.std([70, 71, 75], ddof=1):.1f}"
    assert by_name["AAVAE"][printed] == "87.14" and by_name["AAVAE"]["PFLOP"] == "0.005"
    assert by_name["AAVAE"]["device-hours"] == "0.5" and by_name["AAVAE"]["device-hours of training"] == "0.25"
    assert "VAE, β = 1 (chosen on validation)" in by_name  # by the score, not by the accuracy
    assert {"VAE, β = 0.1", "VAE, β = 1", "raw pixels", "untrained encoder", "SimCLR, quoted by the paper"} <= set(
        by_name
    )
    assert by_name["raw pixels"][measured].startswith("90.0")
    p = ttest_rel([60, 62, 63], [70, 71, 75]).pvalue
    assert f"AE (p = {p:.2g})" in text and "Paired t-tests over 3 seeds" in text
    assert "k=20; 300 test images" in text and "python -m experiments.table1 scale=smoke seed=0,1,2" in text


def test_questions_are_paired_differences_with_intervals(done):
    rows, text = made("questions")
    one = next(row for row in rows if row["difference"] == "AAVAE − AAVAE without noise")
    runs = Runs(SCALES["smoke"], ["seed=0,1,2"], Path("multirun/paper_smoke").absolute())
    pair = [
        runs.of("digits", *own_recipe(runs, "digits", m), f"method={m}").by_seed("knn") for m in ("aavae", "aavae_mean")
    ]
    test = ttest_rel(*([own[seed] for seed in (0, 1, 2)] for own in pair))
    low, high = test.confidence_interval(0.95)
    assert one["95 % interval"] == f"{low:+.1f} to {high:+.1f}" and one["p"] == f"{test.pvalue:.2g}"
    assert len(rows) == 6 and "Holm" in text and "Codes at the end of training" in text
    (last,) = (row for row in rows if row["question"].startswith("3."))
    assert "AAVAE − SimCLR" in last["difference"] and last["seeds"] == "3"
    slope = {}  # of two batch sizes, one twice the other, it is their difference
    for m in ("aavae", "simclr"):
        small, large = (runs.of("digits", *setting(runs, "digits", m), f"batch_size={b}") for b in (64, 128))
        slope[m] = 100 * (large.accuracy("knn").mean - small.accuracy("knn").mean)
    assert last["points"] == f"{slope['aavae'] - slope['simclr']:+.1f}" != "+0.0"


@pytest.mark.parametrize(
    ("given", "corrected"), [([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]), ([0.5, np.nan, 0.4], [0.8, np.nan, 0.8])]
)
def test_p_is_corrected_as_holm_does(given, corrected):
    np.testing.assert_allclose(holm(given), corrected)


DRAWN = [("table1", "epochs"), ("figure5", "epochs")]
OTHERS = [(name, "epochs") for name in NAMED if name not in ("table1", "figure5")]
DRAWN += [pytest.param(*own, marks=pytest.mark.slow) for own in [*OTHERS, ("table1", "pflop"), ("figure4", "hours")]]


@pytest.mark.parametrize(("name", "against"), DRAWN)
def test_every_artefact_is_drawn_and_written(done, name, against):
    rows, text = made(name, f"against={against}")
    assert rows and "Not complete" not in text
    folder = Path("outputs/paper/smoke")
    with Image.open(folder / f"{name}.png") as image:
        assert image.width > 400 and len(image.convert("L").getcolors(1 << 16)) > 10
    assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    tex = (folder / f"{name}.tex").read_text()
    assert tex.count(r"\toprule") == 1 and "±" not in tex and r"\caption{" in tex
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", tex).group(1)
    assert len(columns) == len(rows[0])


def test_equal_numbers_give_equal_files(done):
    made("figure3")
    first = {p.name: p.read_bytes() for p in Path("outputs/paper/smoke").iterdir()}
    made("figure3")
    assert {p.name: p.read_bytes() for p in Path("outputs/paper/smoke").iterdir()} == first


def test_what_is_missing_is_said(done, monkeypatch):
    monkeypatch.setattr("experiments.runs._launch", lambda words: 1)
    gone = done.of("digits", "loss.beta=1").jobs[0].folder
    (gone / "status.json").unlink()
    (gone / "results.json").unlink()
    assert artefact.make(of("figure3"), ["scale=smoke", "seed=0,1,2"]) == 1
    assert "**Not complete: 5 of 6 runs are done.**" in Path("outputs/paper/smoke/figure3.md").read_text()


def test_without_training_what_is_done_is_drawn(done):
    gone = done.of("digits", "loss.beta=1").jobs[0].folder
    (gone / "status.json").unlink()
    _, text = made("figure3", "train=false")  # done: launching would fail
    assert "**Not complete: 5 of 6 runs are done.**" in text and "β = 1 (2 of 3 seeds)" in text


def test_the_vae_is_not_said_to_be_chosen_while_a_run_is_missing(done):
    gone = done.of("digits", "method=vae", "loss.beta=0.1").jobs[2].folder
    (gone / "status.json").unlink()
    rows, text = made("table1", "train=false")
    names = [row["method"] for row in rows]
    assert "VAE, β = 1 (not chosen yet)" in names and "β of the VAE is not chosen yet" in text
    assert "VAE, β = 0.1 (2 of 3 seeds)" in names and "(chosen on validation)" not in text


def test_curves_have_the_epochs_that_all_seeds_have(done):
    group = done.of("digits", "method=aavae")
    with open(group.jobs[1].folder / "metrics.jsonl", "a") as handle:
        handle.write(json.dumps({"step": 30, "epoch": 3, "probe/knn/h/test/accuracy": 0.7, "val/kl": 2.0}) + "\n")
    assert [[x for x, _ in curve] for curve in group.measured("knn")] == [[2, 4]] * 3
    assert group.curves("val/kl") == [[(2, 3.0), (4, 3.0)]] * 3


def test_without_training_runs_of_another_length_are_not_shown(tmp_path):
    runs = Runs(SCALES["smoke"], ["seed=0,1"], tmp_path)
    for dataset, fixed in settings("figure3", "smoke"):
        pretend(runs, dataset, fixed, lambda seed: 50 + seed)
    words = ["scale=smoke", "seed=0,1", "train=false", f"runs={tmp_path}", f"out={tmp_path}/drawn"]
    assert artefact.make(of("figure3"), words) == 0 and "50.5 ± 0.7" in (tmp_path / "drawn/figure3.md").read_text()
    shutil.rmtree(tmp_path / "drawn")
    with pytest.raises(UserError, match=r"with these settings; the most similar one has epochs=4$"):
        artefact.make(of("figure3"), [*words, "epochs=3"])
    with pytest.raises(UserError, match=r"most similar one has precision=auto$"):
        artefact.make(of("figure3"), [*words, "precision=bf16"])
    with pytest.raises(UserError, match="the most similar one has another seed"):
        artefact.make(of("figure3"), [*words[:1], *words[2:], "seed=7"])
    assert not (tmp_path / "drawn").exists()


def test_what_a_method_s_recipe_says_may_be_overridden():
    asked = artefact.parse(["scale=paper", "epochs=10", "optimizer.lr=0.1", "batch_size=64"])
    sweeps = of("table1").sweeps(Runs(asked.scale, asked.overrides, Path("none")))
    artefact.refuse_taken("table1", sweeps, asked)
    runs = Runs(asked.scale, asked.overrides, Path("x"))
    byol = next(s for s in sweeps if s.values == ("byol",))
    words = runs.words("CIFAR-10", byol.fixed)
    assert {"epochs=10", "optimizer.lr=0.1", "optimizer=lars_clipped"} <= set(words) and "epochs=1000" not in words


def test_what_is_kept_names_no_folder_of_the_machine_and_passes_by_damaged_runs(tmp_path, capsys):
    runs = Runs(SCALES["smoke"], ["seed=0,1,2", "data_dir=/home/me/my_data"], tmp_path / "runs")
    pretend(runs, "digits", (), lambda seed: 50 + seed)
    folders = sorted((tmp_path / "runs").iterdir())
    command = "python -m aavae.train 'encoder.weights=/home/me/runs/a b/last.pt' dataset.path=/home/me/my_data.zip"
    for folder in folders:
        (folder / "provenance.json").write_text(
            json.dumps([{"command": command, "git": {"remote": "https://x/me/it"}}])
        )
        said = json.loads((folder / "status.json").read_text())
        (folder / "status.json").write_text(json.dumps(said | {"command": command}))
    (folders[0] / "status.json").write_text("{")
    (tmp_path / "runs" / "latest").symlink_to(folders[1])
    assert keep(tmp_path / "runs", tmp_path / "kept") == 2
    assert f"left out: {folders[0]}: " in capsys.readouterr().err
    kept = "".join(path.read_text() for path in (tmp_path / "kept").rglob("*.*"))
    assert "/home" not in kept and "data_dir: my_data\n" in kept and "https://x/me/it" in kept
    jobs, problems = find_jobs(tmp_path / "kept")
    assert [job.state for job in jobs] == ["done", "done"] and not problems


# ---- What they refuse ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "word", "said"),
    [
        ("table1", "scale=huge", "scale must be paper or cpu or cpu_hour or digits or smoke"),
        ("table1", "against=time", "against must be epochs or pflop or hours"),
        ("table1", "methods=aavae,gan", "methods=gan is not known; say all, or some of"),
        ("table1", "methods=ae,vae", "methods=ae,vae must include aavae"),
        ("table1", "--quick", "--quick is not a setting"),
        ("table1", "train=no", "train must be true or false"),
        ("questions", "train=false", "has no finished run; name another folder with runs="),
        ("figure3", "loss.beta=1", "figure3 chooses loss.beta itself"),
        ("figure4", "+batch_size=3", "figure4 chooses batch_size itself"),
        ("table1", "loss.target=view", "table1 chooses loss.target itself"),
        ("lengths", "seed=a", "seed=a must be whole numbers"),
        ("figure3", "epoch=3", "epoch"),
    ],
)
def test_what_cannot_be_meant_gets_one_sentence(name, word, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"experiments.{name}", word])
    with pytest.raises(SystemExit) as ended:
        artefact.main(of(name))
    *before, error = capsys.readouterr().err.splitlines()
    # What has been counted in this process once is not counted again, and not told.
    assert ended.value.code == 2 and said in error and {*before} <= {"counting what each method computes"}
    assert list(tmp_path.iterdir()) == []


def test_the_document_s_commands_are_understood():
    text = (ROOT / "docs/paper.md").read_text()
    commands = re.findall(r"^python -m experiments\.(\w+)([^#\n]*)", text, re.MULTILINE)
    assert {name for name, _ in commands} == set(NAMED)
    for _, words in commands:
        assert artefact.parse(words.split())


# ---- From the outside ---------------------------------------------------------------------------------------------


FEW = ["seed=0", "epochs=1", "trainer.max_steps=2", "trainer.validate_every=1", "trainer.probe_every=0"]
FEW += ["probe.similarity.images=4", "probe.similarity.shown=2"]


@pytest.mark.slow
def test_every_run_of_every_artefact_is_possible(tmp_path):
    runs = Runs(SCALES["smoke"], FEW, tmp_path)
    jobs = {identity(runs._config(*own)): runs.words(*own) for name in NAMED for own in settings(name, "smoke")}
    plans, _, _ = preflight._examine([*jobs.values()], None, "config")
    assert [plan.error for plan in plans] == [None] * len(jobs) and len(jobs) > 25
    assert all(plan.steps == 2 and plan.flops > 0 for plan in plans)


@pytest.mark.slow
def test_runs_are_trained_once_and_a_dry_run_says_what_is_left(quick_jobs, train, monkeypatch, capsys):
    def run(name: str, *more: str) -> str:
        capsys.readouterr()
        assert artefact.make(of(name), ["scale=smoke", *FEW, *more]) == 0
        return capsys.readouterr().out

    launched = []
    monkeypatch.setattr("experiments.runs._launch", lambda words: launched.append(train("-m", *words)) or 0)
    said = run("lengths", "dry_run=true")
    assert "runs        2 to train for lengths" in said and "PFLOP of training" in said and "on an H100" in said
    assert not Path("outputs").exists() and not Path("multirun").exists()
    run("lengths")
    (ended,) = launched
    assert ended.code == 0 and "2 jobs" in ended.out
    before = {p: p.stat().st_mtime_ns for p in Path("multirun").rglob("last.pt")}
    assert "runs        0 to train" in run("lengths", "dry_run=true") and run("lengths") and len(launched) == 1
    assert {p: p.stat().st_mtime_ns for p in Path("multirun").rglob("last.pt")} == before and len(before) == 2
    drawn = Path("outputs/paper/smoke/lengths.md").read_text()
    assert "Not complete" not in drawn
    # What is kept of them is enough to draw from, elsewhere and later, and names no folder of this machine.
    Path("multirun/paper_smoke/latest").symlink_to(next(iter(before)).parent.absolute())
    assert keep(Path("multirun/paper_smoke"), Path("kept")) == 2
    assert not list(Path("kept").rglob("*.pt")) and str(Path.cwd()) not in "".join(
        path.read_text() for path in Path("kept").rglob("*.*")
    )
    assert "runs        0 to train" in run("lengths", "dry_run=true", "runs=kept") and run(
        "lengths", "runs=kept", "out=again"
    )
    again = Path("again/lengths.md").read_text()
    assert len(launched) == 1 and again.splitlines()[:-1] == drawn.splitlines()[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_alone_stops_its_sweep_after_it_has_saved(tmp_path, monkeypatch, signum):
    monkeypatch.chdir(tmp_path)
    words = ["scale=smoke", "seed=0", "epochs=500", "trainer.probe_every=0", "trainer.log_every=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    patience = time.monotonic() + 300
    command = [sys.executable, "-m", "experiments.lengths", *words]
    with (
        Path("said").open("w") as said,
        subprocess.Popen(command, env=environment, stdout=said, stderr=said) as process,
    ):
        try:
            while not any('loss"' in p.read_text() for p in Path("multirun").rglob("metrics.jsonl")):
                assert process.poll() is None and time.monotonic() < patience, Path("said").read_text()
                time.sleep(0.05)
            process.send_signal(signum)  # as `kill` and `docker stop` do, and no terminal
            assert process.wait(60) == 128 + signum, Path("said").read_text()
        finally:
            process.kill()
    (folder,) = [p.parent for p in Path("multirun").rglob("last.pt")]
    assert status.read(folder)["state"] == "interrupted" and "the same command goes on" in Path("said").read_text()
