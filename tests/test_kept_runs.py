"""What the documents and presets say of CIFAR-10 on CPU cores is what the kept runs have measured."""

import csv
import re
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel
from test_docs import table

from aavae.reports.jobs import JobReport, find_jobs
from aavae.reports.means import accuracies
from experiments.artefact import make
from experiments.runs import Group
from experiments.significance import holm
from experiments.table1 import Table1

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments/results"
PROBES = ("linear_cached", "knn", "few_label_1", "few_label_5")
FLOORS = {"raw pixels": "pixels", "untrained encoder": "h_untrained"}
AAAE, VAE = "AAAE, view target (`aaae`)", "VAE, β = 1 (`vae`)"
VIEWS = "VAE, augmented, view target, β = 1 (`aavae loss.target=view`)"
CLEAN = ("aavae", "aavae_mean", "aaae_denoise")  # see a view and reconstruct the image
# What is the same in all runs of a table; Figures 3 and 4 have others in the same folder.
USUAL = {"batch_size": 256, "latent_dim": 128, "loss.log_scale": 0.0, "decoder.channels": [128, 64, 32]}
OWN = {"aavae": {"loss.beta": 0.0, "loss.target": "original"}, "vae": {"loss.beta": 1.0}}  # as the method's file has it


@cache
def jobs_in(folder: str) -> list[JobReport]:
    jobs, problems = find_jobs(RESULTS / folder)
    assert jobs and not problems
    return jobs


def kept(folder: str, method: str, seeds: tuple[int, ...] = (0,), **settings) -> list[JobReport]:
    """The runs of a method, one a seed."""
    wanted = {"method": method, **USUAL, **settings}
    found = [job for job in jobs_in(folder) if all(job.config.get(k, v) == v for k, v in wanted.items())]
    assert sorted(job.seed for job in found) == [*seeds], (folder, method, settings)
    return found


def three(name: str) -> list[JobReport]:
    """The runs of 6 epochs by their name in a table."""
    method, own = method_of(name), {}
    if typed := re.search(r"β = ([\d.]+)", name):
        own["loss.beta"] = float(typed[1])
    if typed := re.search(r" (loss\.target)=(\w+)", name):
        own[typed[1]] = typed[2]
    return kept("cpu_6_epochs/runs", method, (0, 1, 2), **OWN.get(method, {}) | own)


def method_of(name: str) -> str:
    typed = re.search(r"`(\w+)", name)
    return typed[1] if typed else name.partition(",")[0].lower()


def said_of(jobs: list[JobReport], feature: str = "h") -> dict[str, str]:
    """Accuracies as they are written: percent, with the standard deviation over seeds."""

    def text(spread) -> str:
        return f"{100 * spread.mean:.1f}" + (f" ± {100 * spread.sd:.1f}" if spread.sd is not None else "")

    return {probe: text(spread) for probe, spread in accuracies(jobs, feature).items()}


def by_seed(jobs: list[JobReport]) -> list[float]:
    return [number([job]) for job in sorted(jobs, key=lambda job: job.seed)]


def number(jobs: list[JobReport], probe: str = "linear_cached") -> float:
    return 100 * accuracies(jobs, "h")[probe].mean


def measured_on_the_way(folder: str, method: str) -> dict[str, list[str]]:
    """Test accuracies of a run by probe, the last one at its end."""
    found = {}
    for probe in PROBES:
        [points] = Group(kept(folder, method)).measured(probe)
        found[probe] = [f"{y:.1f}" for _, y in points]
    return found


def prose(path: str) -> str:
    return " ".join((ROOT / path).read_text().split())


def test_the_table_of_24_and_110_epochs_is_measured():
    rows = table("cifar10_cpu", "features | linear | kNN | 1-NN, 1 label")
    assert len(rows) == len(jobs_in("cpu/runs")) + len(jobs_in("cpu_hour/runs")) + len(FLOORS)
    for name, shown in rows.items():
        folder = "cpu_hour/runs" if "110 epochs" in name else "cpu/runs"
        jobs = kept(folder, "aavae" if name in FLOORS else method_of(name))
        assert shown == [said_of(jobs, FLOORS.get(name, "h"))[probe] for probe in PROBES], name


def test_the_table_of_three_seeds_is_measured():
    rows = table("cifar10_cpu", "features, 6 epochs")
    assert len(rows) == 11
    ours, chances = by_seed(three("AAVAE")), {}
    for name, (*shown, ahead) in rows.items():
        assert shown == [said_of(three(name))[probe] for probe in PROBES], name
        if name != "AAVAE":
            others = by_seed(three(name))
            pairs = ttest_rel(ours, others)
            low, high = pairs.confidence_interval(0.95)
            assert ahead == f"{np.subtract(ours, others).mean():+.1f} ({low:+.1f} to {high:+.1f})", name
            chances[name] = pairs.pvalue
    p = dict(zip(chances, holm([*chances.values()]), strict=True))
    said = prose("docs/cifar10_cpu.md")
    shown = f"is shown for AE (p = {p['AE']:.3f}) and for AAAE with the view (p = {p[AAAE]:.3f}), but not for"
    hidden = [name for name in rows if method_of(name) in ("vae", "dae")]
    assert f"{shown} the three VAEs and DAE (p of {min(p[name] for name in hidden):.2f} or more)." in said
    assert max(p["AE"], p[AAAE], p[VIEWS]) < 0.05 and len(hidden) == 4
    assert min(p[name] for name in [*hidden, "SimCLR"]) > 0.05
    ahead = {name: np.subtract(ours, by_seed(three(name))) for name in ["AE", AAAE, VIEWS, *hidden]}
    last = ahead.pop(VIEWS).mean()
    assert (
        f"is {last:.1f} points behind (p = {p[VIEWS]:.3f}). SimCLR's lead is not shown (p = {p['SimCLR']:.2f})." in said
    )
    means = [leads.mean() for leads in ahead.values()]
    assert min(leads.min() for leads in ahead.values()) > 0
    assert f"by {min(means):.1f} to {max(means):.1f} points in the mean, and in each seed" in said


def test_what_is_said_of_the_vae_and_the_target_over_three_seeds():
    said = prose("docs/cifar10_cpu.md")
    scores = [np.mean([job.number("score") for job in three(f"VAE, β = {beta} (`vae`)")]) for beta in ("0.01", "1")]
    assert "chose 0.01: {:.1f} against {:.1f}".format(*(100 * score for score in scores)) in said

    def less(one: str, other: str) -> tuple[float, ...]:
        pairs = ttest_rel(by_seed(three(one)), by_seed(three(other)))
        return np.subtract(by_seed(three(one)), by_seed(three(other))).mean(), *pairs.confidence_interval(0.95)

    control = "It is {:.1f} points behind AAVAE, which three seeds do not show (interval {:+.1f} to {:+.1f})"
    assert control.format(*less("AAVAE", "VAE, β = 0 (`vae`)")) in said
    chosen = (
        "AAVAE is {:.1f} points ahead of a VAE whose β was chosen on validation images. Three seeds do not show this"
    )
    assert (chosen + " (95 % interval {:+.1f} to {:+.1f})").format(*less("AAVAE", "VAE, β = 0.01 (`vae`)")) in said
    assert "It is {:.1f} points ({:.1f} to {:.1f}, not corrected) below the VAE".format(*less(VAE, VIEWS)) in said
    gap, low, _ = less("AE", AAAE)
    assert f"AAAE with the view is {gap:.1f} points below AE, which three seeds do not show" in said and low < 0
    for beta in ("0.01", "0"):
        _, low, high = less("AE", f"VAE, β = {beta} (`vae`)")
        assert low < 0 < high
    knn = {name: number(three(name), "knn") for name in table("cifar10_cpu", "features, 6 epochs")}
    pixels = 100 * accuracies(kept("cpu/runs", "aavae"), "pixels")["knn"].mean
    highest = max(own for name, own in knn.items() if name != "SimCLR") - pixels
    assert f"more than {highest:.1f} points above raw pixels ({pixels:.1f})" in said
    assert f"the augmented VAE is {pixels - knn[VIEWS]:.1f} below them" in said


def test_the_table_of_three_seeds_is_made_by_the_command_that_it_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/cifar10-jpeg-60k.zip").touch()  # it is named, and not read
    kept_table = RESULTS / "cpu_6_epochs/table1.md"
    [command] = re.findall(r"^ +python -m experiments\.table1 (.*)$", kept_table.read_text(), re.M)
    words = [word for word in shlex.split(command) if not word.startswith(("out=", "runs="))]
    assert make(Table1(), [*words, f"runs={RESULTS / 'cpu_6_epochs/runs'}", f"out={tmp_path}"]) == 0
    assert (tmp_path / "table1.csv").read_text() == kept_table.with_suffix(".csv").read_text()
    drawn = (tmp_path / "table1.md").read_text()  # of runs that have not judged pixels and the untrained encoder
    assert "raw pixels" not in drawn and "untrained encoder" not in drawn


def test_the_table_of_other_methods_is_measured():
    found = {}
    for name, (epochs, pflop, *shown) in table("cifar10_cpu", "features, seed 0").items():
        runs = three(name) if name in ("AAVAE", "SimCLR") else kept("cpu_6_epochs/runs", method_of(name))
        [job] = [job for job in runs if job.seed == 0]
        assert [epochs, pflop] == [str(job.config["epochs"]), f"{job.number('flop') / 1e15:.3f}"], name
        assert shown == [said_of([job])[probe] for probe in PROBES], name
        found[name] = [number([job], probe) for probe in PROBES[:2]]
    ours = found.pop("AAVAE")
    (linear, knn), *others = found["SimCLR"], found["VICReg (`vicreg`)"], found["YADIM, our reading (`yadim`)"]
    assert all(abs(other[0] - linear) < 1 and other[1] > knn + 1 for other in others)  # level, and above in kNN
    leads = np.array(list(found.values())) - ours
    low, high = leads.min(axis=0), leads.max(axis=0)
    said = "by {:.1f} to {:.1f} points of linear accuracy and {:.1f} to {:.1f} of kNN"
    assert said.format(low[0], high[0], low[1], high[1]) in prose("docs/cifar10_cpu.md")


def test_the_authors_evaluation_is_measured():
    found = {}
    for name, shown in table("cifar10_cpu", "accuracy, seed 0").items():
        [job] = kept("cpu_search/authors_linear", name.lower())
        own = {(r["probe"], r["split"]): 100 * r["value"] for r in job.results if r["metric"] == "accuracy"}
        found[name] = [own[probe, split] for split in ("test", "val") for probe in ("linear", "linear_cached")]
        assert shown == [f"{value:.1f}" for value in found[name]], name
    lead = np.subtract(found["AAVAE"], found["AE"])
    said = prose("docs/cifar10_cpu.md")
    assert "is {:.1f} points ahead of AE on the test images and {:.1f} on the validation".format(*lead[::2]) in said
    assert "images, with the cached one {:.1f} and {:.1f}.".format(*lead[1::2]) in said
    assert max(abs(a - b) for one in found.values() for a, b in (one[:2], one[2:])) < 1.5


def test_the_table_of_the_readme_is_measured():
    rows = table("../README", "features | linear, 24 epochs")
    assert len(rows) == 9 + len(FLOORS)
    for name, shown in rows.items():
        jobs = kept("cpu/runs", "aavae" if name in FLOORS else method_of(name))
        long = {} if name.startswith("VAE, β = 0.01") else said_of(jobs, FLOORS.get(name, "h"))
        # Pixels owe nothing to training. The weights of the untrained encoder differ between seeds.
        short = said_of(three(name)) if name not in FLOORS else long if name == "raw pixels" else {}
        assert shown == [*(long.get(p, "–") for p in PROBES[:2]), *(short.get(p, "–") for p in PROBES[:2])], name
    text = prose("README.md")
    leads = sorted(number(kept("cpu/runs", m)) - number(kept("cpu/runs", "ae")) for m in CLEAN)
    assert f"{leads[0]:.0f} to {leads[-1]:.0f} points ahead of AE after 24 epochs (one seed)" in text
    shorter = sorted(number(three(m)) - number(three("ae")) for m in CLEAN)
    assert f"and {shorter[0]:.1f} to {shorter[-1]:.1f} after 6 (three seeds)" in text
    lead = ttest_rel(by_seed(three("AAVAE")), by_seed(three("VAE, β = 0.01 (`vae`)")))
    assert (
        f"a small β ({number(three('AAVAE')) - number(three('VAE, β = 0.01 (`vae`)')):.1f} points after 6 epochs"
        in text
    )
    assert lead.confidence_interval(0.95).low < 0
    hour = [number(kept("cpu_hour/runs", method)) for method in ("aavae", "ae")]
    assert f"After 110 epochs the lead is {hour[0] - hour[1]:.0f} points ({hour[0]:.1f} against {hour[1]:.1f}," in text


def test_what_is_said_of_24_epochs():
    said = prose("docs/cifar10_cpu.md")
    leads = [
        round(number(kept(folder, "aavae"), probe) - number(kept(folder, "ae"), probe))
        for folder in ("cpu/runs", "cpu_hour/runs")
        for probe in ("linear_cached", "knn")
    ]
    assert "{} points ahead in linear accuracy and {} in kNN, after 110 epochs {} and {}.".format(*leads) in said
    cosine = {m: kept(f"cpu_search/cosine/{m}", m) for m in ("aavae", "simclr", "ae")}
    again = {s: number(kept(f"cpu_search/{s}/aavae_seed_1", "aavae", (1,))) for s in ("constant", "cosine")}
    second = f"(a second seed: {again['cosine']:.1f}, and {again['constant']:.1f} with the constant rate)"
    assert f"With a cosine over 24 epochs AAVAE has {number(cosine['aavae']):.1f} {second}" in said
    assert f"SimCLR {number(cosine['simclr']):.1f} and AE {number(cosine['ae']):.1f}." in said
    knn = {method: number(kept("cpu/runs", method), "knn") for method in ("aavae", "ae", "vae", "aaae")}
    ahead, behind, left = (round(knn[a] - knn[b]) for a, b in (("vae", "ae"), ("aavae", "vae"), ("aaae", "ae")))
    assert f"In kNN the VAE is {ahead} points ahead of AE, and {behind} behind AAVAE." in said
    assert f"{left} points are left in kNN" in said
    lead = number(kept("cpu/runs", "simclr")) - number(kept("cpu/runs", "aavae"))
    assert f"**SimCLR** is {lead:.0f} points ahead of AAVAE" in said
    lead = number(cosine["aavae"]) - number(cosine["ae"])
    assert f"the lead over AE is {lead:.1f} points with the cosine" in said
    curve = measured_on_the_way("cpu_hour/runs", "aavae")
    assert "AAVAE has {}, {} and {} after 66, 88 and 110".format(*curve["linear_cached"][-3:]) in said
    assert "its kNN is {}, {} and {}.".format(*curve["knn"][-3:]) in said
    curve = measured_on_the_way("cpu/runs", "ae")
    assert "it has {} after 8 epochs, {} after 16 and {} after 24".format(*curve["knn"]) in said
    curve = measured_on_the_way("cpu/runs", "simclr")
    assert "It has {} after 16 epochs and {} after 17".format(*curve["linear_cached"][-2:]) in said


def test_what_is_said_of_the_three_questions():
    said = prose("docs/cifar10_cpu.md")
    with open(RESULTS / "cpu_6_epochs/questions.csv", newline="") as handle:
        asked = list(csv.DictReader(handle))
    shown = [[row["points"], row["95 % interval"], row["seeds"]] for row in asked]
    assert list(table("cifar10_cpu", "difference").items()) == list(
        zip((row["difference"] for row in asked), shown, strict=True)
    )
    noise, _, domain, _, gain, slope = asked
    assert f"a gain of more than {float(noise['95 % interval'].split('to')[1]):g} points is outside" in said
    assert f"{gain['points'][1:]} points better than no noise (AE; p = {gain['p, Holm']}, corrected" in said
    assert f"{domain['points'][1:]} points better than noise and dropped pixels (DAE; p = {domain['p, Holm']}," in said
    assert f"(p = {float(slope['p']):.2f}; {slope['p, Holm']} corrected)" in said

    def of_size(method: str, size: int) -> str:
        own = OWN.get(method, {}) | {"batch_size": size}
        return f"{number(kept('cpu_6_epochs/runs', method, (0, 1, 2), **own), probe):.1f}"

    probe = "linear_cached"
    assert f"AAVAE falls from {of_size('aavae', 128)} to {of_size('aavae', 1024)}" in said
    assert f"SimCLR goes from {of_size('simclr', 128)} to {of_size('simclr', 1024)}" in said
    probe = "knn"
    assert f"AAVAE from {of_size('aavae', 128)} to {of_size('aavae', 1024)}, SimCLR" in said
    assert f"SimCLR from {of_size('simclr', 128)} to {of_size('simclr', 1024)}." in said


def test_what_is_said_of_figures_3_and_4():
    said, found = prose("docs/cifar10_cpu.md"), {}
    for name in ("figure3", "figure4"):
        with open(RESULTS / f"cpu_6_epochs/{name}.csv", newline="") as handle:
            found |= {row[0]: float(row[1]) for row in list(csv.reader(handle))[1:] if row[1][:1].isdigit()}
    small = [accuracy for name, accuracy in found.items() if re.match(r"β = 0|\([bcd]\)", name)]
    assert len(small) == 14 and f"is between {min(small)} and {max(small)} for β from 0 to 0.1" in said
    assert f"With β = 1 it is {found['β = 1']}" in said


def test_the_curve_is_that_of_the_table():
    assert (ROOT / "docs/cifar10_cpu.png").read_bytes() == (RESULTS / "cpu/table1.png").read_bytes()


@pytest.mark.parametrize("name", ["cpu", "cpu_hour"])
def test_the_presets_for_cpus_say_what_the_kept_runs_have(name):
    def own(folder: str, method: str, between: str = " and ") -> str:
        accuracy = said_of(kept(folder, method))
        return f"{accuracy['linear_cached']}{between}{accuracy['knn']}"

    said = (ROOT / f"conf/experiment/cifar10_{name}.yaml").read_text().split("defaults:")[0]
    assert f"AAVAE {own(f'{name}/runs', 'aavae', ' % linear, ')} % kNN" in said
    assert f"AE {own(f'{name}/runs', 'ae')}" in said
    if name == "cpu":
        assert f"SimCLR has {own('cpu/runs', 'simclr')} in 17 epochs" in said
        assert f"epochs=40 schedule=cosine: AAVAE {own('cpu_40_epochs/runs', 'aavae')}" in said
        cosine = {method: own(f"cpu_search/cosine/{method}", method) for method in ("aavae", "ae", "simclr")}
        assert "schedule=cosine: AAVAE {aavae}, AE {ae}, SimCLR {simclr}.".format(**cosine) in said
