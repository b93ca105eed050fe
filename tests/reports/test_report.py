"""`aavae-report`: what a sweep has found, whatever became of its jobs."""

import csv
import json
import os
import shutil
import statistics
from pathlib import Path

import pytest
from bombs import BOMB
from conftest import command
from omegaconf import OmegaConf
from run_folders import a_run, a_sweep, record

from aavae.reports.jobs import find_jobs
from aavae.reports.means import summarize
from aavae.reports.page import page
from aavae.reports.tables import as_csv, latex, markdown, merged, write


def cells(folder: Path) -> list[dict[str, str]]:
    """The rows of the Markdown table."""
    lines = [line for line in markdown(summarize(folder)).splitlines() if line.startswith("|")]
    head, _, *body = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in body]


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of sweep.csv."""
    return list(csv.DictReader(as_csv(summarize(folder)).splitlines(keepends=True)))


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """`aavae-report ARGUMENTS`."""
    from aavae.report import main

    return command(main, "aavae-report", tmp_path, monkeypatch, capsys)


# ---- Means --------------------------------------------------------------------------------------------------------


def test_means_and_spreads_over_seeds_are_those_of_the_statistics_module(tmp_path):
    values = {8: [0.61, 0.67, 0.7], 16: [0.9, 0.84, 0.87]}
    for dim, found in values.items():
        for seed, value in enumerate(found):
            a_run(tmp_path / f"{dim}_{seed}", record(value=value), seed=seed, latent_dim=dim, said={"score": value / 2})
    for row, found in zip(cells(tmp_path), values.values(), strict=True):
        assert row["kNN"] == f"{100 * statistics.fmean(found):.1f} ± {100 * statistics.stdev(found):.1f}"
        half = [value / 2 for value in found]
        assert row["score"] == f"{statistics.fmean(half):.4g} ± {statistics.stdev(half):.2g}"
        assert (row["seeds"], row["state"]) == ("3", "done")
    assert [row["latent_dim"] for row in cells(tmp_path)] == ["8", "16"]  # as numbers


def test_of_few_label_probes_the_mean_over_draws_enters(tmp_path):
    for seed, value in enumerate((0.5, 0.6)):
        sd = record("few_label_5", 0.2, metric="accuracy_sd")
        a_run(tmp_path / str(seed), record("few_label_5", value), sd, seed=seed)
    [row] = cells(tmp_path)
    assert row["1-NN, 5 labels"] == "55.0 ± 7.1" and "its mean enters" in markdown(summarize(tmp_path))


def test_only_test_accuracies_of_jobs_that_are_done_enter(tmp_path):
    a_run(tmp_path / "a", record(value=0.5), record(value=0.99, split="val"), seed=0)
    for i, state in enumerate(("running", "interrupted", "failed"), 1):
        a_run(tmp_path / state, record(value=0.1), state=state, seed=i)
    [row] = cells(tmp_path)
    assert row["kNN"] == "50.0" and row["seeds"] == "1"
    assert row["state"] == "1 done, 1 running, 1 interrupted, 1 failed"


def test_probes_without_a_name_of_their_own_have_a_column(tmp_path):
    a_run(tmp_path / "a", record("semi_5", 0.5), record("knn", 0.7))
    [row] = cells(tmp_path)
    assert (row["kNN"], row["semi_5"]) == ("70.0", "50.0") and list(row).index("kNN") < list(row).index("semi_5")


def test_a_mean_over_fewer_seeds_or_several_protocols_is_marked(tmp_path):
    a_run(tmp_path / "a", record("knn", 0.5), record("linear", 0.5, protocol="weight decay 0.1 chosen"), seed=0)
    a_run(tmp_path / "b", record("knn", 0.7, protocol="k=5"), seed=1)
    a_run(tmp_path / "c", record("linear", 0.5, protocol="weight decay 0.01 chosen"), seed=2)
    [row] = cells(tmp_path)
    assert row["kNN"] == "60.0 ± 14.1† (2)" and row["linear"] == "50.0 ± 0.0 (2)"  # what was chosen on val may differ
    text = markdown(summarize(tmp_path))
    assert "- kNN: k=20/k=5; 300 test images" in text and "(n): of n seeds" in text and "†: not all" in text


def test_protocols_that_differ_in_more_than_numbers_stand_apart():
    said = ("SGD, 90 epochs, float32", "SGD, 90 epochs, bf16", "SGD, 10 epochs, bf16", "LBFGS, 90 epochs, float32")
    assert merged(said) == "SGD, 90 epochs, float32; or SGD, 90/10 epochs, bf16; or LBFGS, 90 epochs, float32"


def test_baselines_stand_below_and_spread_over_seeds_not_over_jobs(tmp_path):
    pixels = {0: 0.3, 1: 0.4}
    for dim in (8, 16, 64):
        for seed, value in pixels.items():
            found = record(value=value, feature="pixels"), record(value=0.2, feature="h_untrained")
            a_run(tmp_path / f"{dim}_{seed}", record(), *found, seed=seed, latent_dim=dim)
    below = cells(tmp_path)[3:]
    assert [row["latent_dim"] for row in below] == ["raw pixels", "untrained"]
    assert below[0]["kNN"] == f"35.0 ± {100 * statistics.stdev(pixels.values()):.1f}"
    assert below[0]["seeds"] == "2" and below[0]["state"] == ""


def test_baselines_of_other_images_or_encoders_are_no_mean(tmp_path):
    for i, (data, layers) in enumerate([("Digits", [1]), ("Digits", [2]), ("CIFAR10", [1])]):
        found = record(value=i / 10, feature="pixels"), record(value=i / 10, feature="h_untrained")
        a_run(tmp_path / str(i), *found, dataset___target_=data, encoder__layers=layers)
    pixels = [(r["dataset"], r["kNN"]) for r in cells(tmp_path) if r["features"] == "raw pixels"]
    assert pixels == [("Digits", "5.0"), ("CIFAR10", "20.0")]
    assert len([r for r in cells(tmp_path) if r["features"] == "untrained"]) == 3


def test_rows_that_did_not_start_from_random_weights_are_marked(tmp_path):
    for i, encoder in enumerate(({}, {"encoder__weights": "a.pt"}, {"encoder__pretrained": True})):
        records = [record(value=i / 4), record(value=0.3, feature="mu"), record(value=0.1, feature="h_untrained")]
        a_run(tmp_path / str(i), *records, method=f"m{i}", encoder__name="vit", **encoder)
    found = [next(iter(row.values())) for row in cells(tmp_path)]
    assert found == ["m0", "m0", "m1 ‡", "m1 ‡", "m2 ‡", "m2 ‡", ""]
    assert cells(tmp_path)[-1]["features"] == "untrained"  # the floor is one, at random weights
    text = markdown(summarize(tmp_path))
    assert "‡: training did not start from random weights." in text and r"m1 $\ddagger$" in latex(summarize(tmp_path))
    assert "m1 ‡" in page(summarize(tmp_path))
    assert [row["start"] for row in rows(tmp_path)] == ["", "a.pt", "pretrained vit"]
    shutil.rmtree(tmp_path / "1")
    shutil.rmtree(tmp_path / "2")
    assert "‡" not in markdown(summarize(tmp_path)) and "start" not in rows(tmp_path)[0]


def test_other_representations_of_a_run_have_rows_of_their_own(tmp_path):
    a_run(tmp_path / "a", record(value=0.5), record(value=0.4, feature="mu"), record(value=0.3, feature="pixels"))
    rows_of = [(row["method"], row["features"], row["kNN"]) for row in cells(tmp_path)]
    assert rows_of == [("aavae", "h", "50.0"), ("aavae", "μ", "40.0"), ("", "raw pixels", "30.0")]


def test_numbers_that_are_none_are_shown_and_harm_no_one(tmp_path):
    a_run(tmp_path / "a", record(value=float("nan")), seed=0, said={"score": float("inf")})
    a_run(tmp_path / "b", record(value=0.5), seed=1, said={"score": -1.0})
    assert cells(tmp_path)[0]["kNN"] == "nan ± nan"


# ---- What varies --------------------------------------------------------------------------------------------------


def test_a_choice_of_a_group_is_one_column_under_the_name_that_was_typed(tmp_path):
    a_sweep(tmp_path, "experiment=digits encoder=small seed=0", "experiment=digits encoder=large seed=0")
    a_run(tmp_path / "0", encoder={"_target_": "r", "layers": [1], "channels": 16})
    a_run(tmp_path / "1", encoder={"_target_": "r", "layers": [2], "channels": 64})
    assert [row["encoder"] for row in cells(tmp_path)] == ["large", "small"]
    assert list(cells(tmp_path)[0])[:2] == ["encoder", "seeds"]
    assert [(row["encoder"], row["encoder.channels"]) for row in rows(tmp_path)] == [("small", "16"), ("large", "64")]


def test_what_differs_without_having_been_swept_is_never_averaged(tmp_path):
    a_sweep(tmp_path, "latent_dim=8", "latent_dim=16", "latent_dim=8 sweep=beta")
    a_run(tmp_path / "0", latent_dim=8)
    a_run(tmp_path / "1", latent_dim=16)
    a_run(tmp_path / "2", latent_dim=8, loss__beta=1.0)
    assert [(row["latent_dim"], row["beta"]) for row in cells(tmp_path)] == [("8", "0.0"), ("8", "1.0"), ("16", "0.0")]


def test_without_a_sweep_what_always_changes_together_is_one_column(tmp_path):
    runs = [("ae", "mean", 0, 8), ("ae", "mean", 0, 16), ("vae", "reparam", 1, 16), ("aavae", "reparam", 0, 16)]
    for i, (method, sample, beta, dim) in enumerate(runs):
        a_run(tmp_path / str(i), method=method, loss__sample=sample, loss__beta=beta, latent_dim=dim)
    assert [list(row)[:3] for row in cells(tmp_path)] == [["method", "latent_dim", "seeds"]] * 4


def test_what_goes_along_with_a_column_is_said(tmp_path):
    a_run(tmp_path / "a", loss__beta=0.0, loss__sample="mean")
    a_run(tmp_path / "b", loss__beta=1.0)
    assert "With beta change loss.sample." in markdown(summarize(tmp_path))
    a_run(tmp_path / "c" / "a", method="ae", loss__beta=1.0, decoder__layers=[2])
    a_run(tmp_path / "c" / "b", method="vae")
    assert "With method change decoder.layers." in markdown(summarize(tmp_path / "c"))


def test_what_was_typed_for_single_runs_is_a_column(tmp_path):
    typed = "aavae-train experiment=digits seed=1 hydra.run.dir=x"
    a_run(tmp_path / "a", said={"command": f"{typed} encoder=small"}, encoder__layers=[1])
    a_run(tmp_path / "b", said={"command": f"python -m aavae.{typed.split('-')[1]}"}, encoder__layers=[2])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "status.json").write_text("{")
    a_run(tmp_path / ".trash" / "d", latent_dim=7)
    assert [row["encoder"] for row in cells(tmp_path)] == ["default", "small", "–"]


def test_a_grid_was_typed_for_no_run_in_particular(tmp_path):
    a_run(tmp_path / "a", said={"command": "python -m aavae.train -m encoder=small,large"}, encoder__layers=[1])
    a_run(tmp_path / "b", said={"command": "aavae-train encoder=small"}, encoder__layers=[2])
    assert [row["layers"] for row in cells(tmp_path)] == ["[1]", "[2]"]


def test_short_names_are_used_where_they_are_unambiguous(tmp_path):
    a_sweep(tmp_path, "encoder.layers=[1] loss.beta=0", "decoder.layers=[2] loss.beta=1")
    assert list(cells(tmp_path)[0])[:3] == ["encoder.layers", "beta", "decoder.layers"]


def test_jobs_that_never_began_stand_with_what_was_asked_of_them(tmp_path):
    a_sweep(tmp_path, "loss.beta=1 seed=0", "loss.beta=1 seed=1", "latent_dim=16 loss.beta=1e-3 seed=0")
    a_run(tmp_path / "0", record(), latent_dim=8, loss__beta=1.0)
    assert [row["latent_dim"] for row in rows(tmp_path)] == ["8", "8", "16"]
    found = [(row["beta"], row["latent_dim"], row["state"]) for row in cells(tmp_path)]
    assert found == [("0.001", "16", "1 pending"), ("1.0", "8", "1 done, 1 pending")]
    assert rows(tmp_path)[2] | {"loss.beta": "0.001", "seed": "0", "state": "pending"} == rows(tmp_path)[2]


def test_what_was_asked_of_them_is_read_as_hydra_reads_it(tmp_path):
    a_sweep(
        tmp_path, "loss.beta=1 deterministic=true", "loss.beta=2 deterministic=True", "loss.beta=3 deterministic=no"
    )
    a_run(tmp_path / "0", record(), loss__beta=1.0, deterministic=True)
    assert [row["deterministic"] for row in cells(tmp_path)] == ["true", "true", "no"]


def test_configs_are_read_as_omegaconf_reads_them(tmp_path):
    strange = {
        "a": 1e-5,
        "b": "1e-3",
        "c": "no",
        "d": "2020-01-01",
        "e": float("inf"),
        "f": None,
        "g": "0x1",
        "h": ["1"],
    }
    folder = a_run(tmp_path / "a", loss=strange)
    by_hand = (folder / "config.yaml").read_text() + "extra: {x: 1e-3, y: -2E+4, z: 12:30, v: 1e3x}\n"
    (folder / "config.yaml").write_text(by_hand)
    expected = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    [[job], _] = find_jobs(tmp_path)
    read = {k.partition(".")[2]: v for k, v in job.config.items() if k.startswith(("loss.", "extra."))}
    assert read == expected["loss"] | expected["extra"] and expected["extra"]["x"] == 0.001


# ---- What went wrong ----------------------------------------------------------------------------------------------


def dead(folder: Path) -> None:
    said = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(said | {"state": "running", "updated": "2020-01-01T00:00:00+00:00"}))


@pytest.mark.parametrize(
    ("state", "code"), [("done", 0), ("running", 0), ("pending", 0), ("interrupted", 0), ("failed", 1), ("dead", 1)]
)
def test_the_exit_code_says_whether_a_job_failed(state, code, tmp_path, report):
    a_run(tmp_path / "s" / "a", record())
    folder = a_run(tmp_path / "s" / "b", state="done" if state == "dead" else state, seed=1)
    if state == "dead":
        dead(folder)
    ended = report("s")
    assert ended.code == code and (state == "done" or f"1 {state}" in ended.out), ended
    assert not ended.err


def test_failed_jobs_are_named_with_their_reason_and_their_log(tmp_path, report):
    a_sweep(tmp_path / "s", "latent_dim=8", "latent_dim=16", "latent_dim=32")
    a_run(tmp_path / "s" / "0", record(), latent_dim=8)
    reason = "OutOfMemoryError: no room,\nfor [red]|`all`| \x1b[31mof\x00 it\ud800"
    failed = a_run(tmp_path / "s" / "1", state="failed", latent_dim=16, said={"reason": reason})
    said = json.loads((failed / "status.json").read_text()) | {"reason": reason}
    (failed / "status.json").write_text(json.dumps(said))
    (failed / "log.txt").write_text("Traceback")
    dead(a_run(tmp_path / "s" / "2", latent_dim=32))
    ended = report("s")
    lines = ended.out.splitlines()
    assert "failed      latent_dim=16: OutOfMemoryError: no room, for [red]|`all`| [31mof it" in lines
    assert lines[lines.index(next(line for line in lines if line.startswith("failed "))) + 1].split() == ["s/1/log.txt"]
    assert any(line.startswith("dead        latent_dim=32: nothing was heard of it since 2020") for line in lines)
    assert (
        "- failed: `latent_dim=16`, `OutOfMemoryError: no room, for [red]|'all'|"
        in (tmp_path / "s/sweep.md").read_text()
    )
    with open(tmp_path / "s" / "sweep.csv", newline="") as handle:
        assert [row["reason"] for row in csv.DictReader(handle)][1] == reason.replace("\ud800", "?")


DEEP = "a: " + "[" * 20_000 + "]" * 20_000
DAMAGES = {
    "status.json": ["", "[]", '{"state": "lost"}', '{"state": "running"}', '{"state": "running", "updated": 3}'],
    "results.json": ["{", "[{}]", '[{"probe": 1}]', "3"],
    "config.yaml": ["a: [", "just text", "\x00", BOMB, DEEP],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, text) for name, texts in DAMAGES.items() for text in texts], ids=lambda text: text[:24]
)
def test_a_damaged_file_hides_no_other_job(name, content, tmp_path, report):
    a_sweep(tmp_path / "s", "latent_dim=8", "latent_dim=16")
    for i, dim in enumerate((8, 16)):
        a_run(tmp_path / "s" / str(i), record(value=0.7), latent_dim=dim)
    (tmp_path / "s" / "1" / name).write_text(content)
    ended = report("s")
    assert ended.code == 2 and "70.0" in ended.out and "1 done, 1 damaged" in ended.out
    [line] = [line for line in ended.out.splitlines() if line.startswith("damaged ")]
    assert "latent_dim=16" in line and "damaged" in line.partition(":")[2]
    assert "16" in [row.get("latent_dim") for row in cells(tmp_path / "s")]


@pytest.mark.parametrize(
    "jobs", ["{", '[], "launches": 3', '[{"folder": "0"}]', '[{"folder": "0", "name": "0", "overrides": [3]}]']
)
def test_a_damaged_sweep_hides_no_job(jobs, tmp_path, report):
    a_run(tmp_path / "s" / "0", record(value=0.7))
    (tmp_path / "s" / "sweep.json").write_text('{"launches": [], "jobs": ' + jobs + "}")
    ended = report("s")
    assert ended.code == 2 and "70.0" in ended.out and "s/sweep.json is damaged" in ended.out


def test_a_run_that_has_lost_its_status_is_not_counted(tmp_path):
    (a_run(tmp_path / "a", record()) / "status.json").unlink()
    [job] = summarize(tmp_path).jobs
    assert job.state == "damaged" and "status.json" in job.line and summarize(tmp_path).code == 2


def test_other_files_called_config_are_no_runs(tmp_path, report):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("seed: 0")
    ended = report(".")
    assert (ended.code, ended.out, ended.err) == (2, "", "aavae-report: there is no run in .\n")


def test_what_cannot_be_written_is_said_after_the_table(tmp_path, report):
    a_run(tmp_path / "s" / "a", record(value=0.7))
    (tmp_path / "s" / "sweep.csv").mkdir()
    ended = report("s")
    assert ended.code == 2 and "70.0" in ended.out
    assert len(ended.err.splitlines()) == 1 and "cannot write s/sweep.csv" in ended.err


# ---- The command --------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_does_not_keep_the_others_back(tmp_path, report):
    a_run(tmp_path / "s" / "a", record(value=0.7))
    ended = report("nowhere", "s")
    assert ended.code == 2 and "70.0" in ended.out and ended.err == "aavae-report: there is no folder nowhere\n"


def test_several_sweeps_below_a_folder_are_one_table(tmp_path, report):
    for name, dim in (("x", 8), ("y", 16)):
        a_sweep(tmp_path / "m" / name, f"latent_dim={dim} seed=0", f"latent_dim={dim} seed=1")
        a_run(tmp_path / "m" / name / "0", record(), latent_dim=dim)
    assert report("m").code == 0
    assert [row["state"] for row in cells(tmp_path / "m")] == ["1 done, 1 pending"] * 2
    assert [row["folder"] for row in rows(tmp_path / "m")] == ["x/0", "x/1", "y/0", "y/1"]


def test_a_single_run_is_shown_and_left_as_it_is(tmp_path, report):
    folder = a_run(tmp_path / "a", record(value=0.7))
    before = sorted(os.listdir(folder))
    ended = report("a")
    assert ended.code == 0 and "aavae" in ended.out and "70.0" in ended.out and sorted(os.listdir(folder)) == before
    assert "Protocols: results.json." in ended.out


def test_a_pipe_gets_whole_lines_and_markup_is_text(tmp_path, report, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    for dim in (8, 16):
        a_run(tmp_path / "s" / str(dim), *(record(f"probe_{i}") for i in range(9)), method=f"[bold]{dim}[/bold] a|b")
    out = report("s").out
    assert all(f"probe_{i}" in out.splitlines()[2] for i in range(9)) and "[bold]8[/bold] a|b" in out
    assert "| [bold]8[/bold] a\\|b " in (tmp_path / "s" / "sweep.md").read_text()


def test_help_and_version_say_what_they_should(report):
    assert "DIR/sweep.md" in report("--help").out and report("--version").out.startswith("aavae ")
    assert report().code == 2


def test_the_commands_of_a_sweep_stand_in_its_report(tmp_path):
    a_sweep(tmp_path, "latent_dim=8", launches=(("latent_dim=8,16", "probe=[knn, linear]"), ("latent_dim=32",)))
    text = markdown(summarize(tmp_path))
    assert "    aavae-train -m latent_dim=8,16 'probe=[knn, linear]'\n    aavae-train -m latent_dim=32\n" in text


@pytest.mark.slow
def test_a_sweep_that_was_run_is_reported_as_it_was_measured(tmp_path, train, quick_jobs, report):
    small = ["trainer=debug", "trainer.max_steps=1", "probe=knn", "features=[h,pixels]", "hydra/launcher=basic"]
    ended = train("-m", *small, "method=ae,aavae", "sweep.name=first")
    assert ended.code == 0, ended.err
    folder = tmp_path / "multirun" / "first"
    ended = report("multirun/first")
    assert ended.code == 0 and not ended.err
    found = {}
    for path in folder.glob("*/results.json"):
        for r in json.loads(path.read_text()):
            if r["split"] == "test":
                found[OmegaConf.load(path.with_name("config.yaml")).method, r["feature"]] = r["value"]
    *own, below = cells(folder)
    assert [list(row)[:2] for row in own] == [["method", "seeds"]] * 2
    assert {row["method"]: row["kNN"] for row in own} == {m: f"{100 * found[m, 'h']:.1f}" for m in ("ae", "aavae")}
    assert below["method"] == "raw pixels" and below["kNN"] == f"{100 * found['ae', 'pixels']:.1f}"
    with open(folder / "sweep.csv", newline="") as handle:
        table = {row["method"]: row for row in csv.DictReader(handle)}
    assert {m: float(row["knn/h/test/accuracy"]) for m, row in table.items()} == {m: found[m, "h"] for m in table}
    assert {row["seed"] for row in table.values()} == {"0"} and table["ae"]["loss._target_"].endswith("tionLoss")
    assert all((folder / row["folder"] / "last.pt").exists() for row in table.values())


def test_a_report_is_written_again_with_what_is_new(tmp_path):
    a_run(tmp_path / "a", record())
    write(summarize(tmp_path))
    a_run(tmp_path / "b", record(), seed=1)
    write(summarize(tmp_path))
    assert "2 jobs, 2 done" in (tmp_path / "sweep.md").read_text() and len(rows(tmp_path)) == 2
