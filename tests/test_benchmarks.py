"""The benchmarks measure what they say, fairly, and keep what they have measured; how fast it is, is no matter here."""

import itertools
import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch

from aavae import build
from aavae.augmentations.pipeline import Pipeline
from aavae.augmentations.simclr import SimCLRViews
from aavae.datasets.loader import Batch
from benchmarks import __main__ as command
from benchmarks import augmentation, clean_pass, ladder, reference, rivals, startup, step, syncs, tables, timing
from benchmarks.arithmetic import flop_per_image, matrix_peak
from benchmarks.book import Book, Measured, summary
from benchmarks.timing import Candidate, interleave

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
TINY = (*ladder.DATA, *ladder.MODELS["tiny"].overrides, "batch_size=8", "dataset.size=64", "device=cpu")
HEAD = {
    "state": "done",
    "command": "python -m benchmarks",
    "machine": {
        "date": "today",
        "git": None,
        "device": "a CPU",
        "cores": 2,
        "threads": 1,
        "load": 0.0,
        "versions": {"torch": "2", "timm": None},
    },
}


# ---- The command --------------------------------------------------------------------------------------------------


def written(folder: Path) -> tuple[dict, str]:
    [found] = folder.glob("*.json")
    return json.loads(found.read_text()), found.with_suffix(".md").read_text()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What `python -m benchmarks --quick` writes; its commands are forks of a process that has imported torch."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(startup, "subprocess", SimpleNamespace(Popen=forked.Popen, DEVNULL=subprocess.DEVNULL))
        assert command.main(["--quick", "--device", "cpu", "--repeats", "2", "--out", "out"]) == 0
    return written(folder / "out")


@pytest.mark.slow
def test_every_part_is_measured_and_shown(quick):
    plain, text = quick
    assert plain["state"] == "done" and {row["part"] for row in plain["rows"]} == set(command.PARTS)
    assert not [row for row in plain["rows"] if row["failed"]]
    assert all(row["samples"] or row["note"] for row in plain["rows"])
    for row in plain["rows"]:
        assert re.search(rf"\| {re.escape(row['name'])} +\|", text), row["name"]


@pytest.mark.slow
def test_the_sums_are_those_of_the_samples(quick):
    for row in quick[0]["rows"]:
        if row["samples"]:
            assert row["median"] == statistics.median(row["samples"])
            assert (row["low"], row["high"]) == (min(row["samples"]), max(row["samples"]))
            assert row["low"] <= row["q1"] <= row["median"] <= row["q3"] <= row["high"]
            assert row["unit"] != "images/s" or row["low"] > 0


@pytest.mark.slow
def test_the_ladder_s_numbers_follow_from_its_speeds(quick):
    rows = [row for row in quick[0]["rows"] if row["part"] == "step" and row["samples"]]
    assert len(rows) >= 6 and rows[0]["name"] == ladder.REFERENCE
    for before, row in zip([None, *rows], rows, strict=False):
        columns, flops = row["columns"], row["median"] * row["facts"]["flop_per_image"]
        assert columns["× reference"] == pytest.approx(row["median"] / rows[0]["median"])
        assert columns["× before"] == (before and pytest.approx(row["median"] / before["median"]))
        assert columns["TFLOP/s"] == pytest.approx(flops / 1e12)
        assert columns["% of peak"] == pytest.approx(100 * flops / row["facts"]["matrix_peak"])
        assert columns["hours"] == pytest.approx(45_000 * 3_200 / row["median"] / 3600)
        assert math.isfinite(row["facts"]["loss"])


@pytest.mark.slow
def test_views_are_compared_with_pil_s(quick):
    rows = [row for row in quick[0]["rows"] if row["part"] == "augmentation"]
    assert len({row["group"] for row in rows}) == 3
    pil = {row["group"]: row["median"] for row in rows if row["name"].startswith("PIL")}
    for row in rows:
        assert row["columns"]["× PIL"] == pytest.approx(row["median"] / pil[row["group"]])


@pytest.mark.slow
def test_the_first_step_comes_before_the_end_of_its_run(quick):
    rows = {row["name"]: row for row in quick[0]["rows"] if row["part"] == "startup"}
    assert rows["one step: to the first step"]["median"] < rows["one step: the whole run"]["median"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["steps"], "invalid choice: 'steps'"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--repeats", "0"], "'0' is not a whole number above 0"),
        (["--batch", "64,many"], "'many' is not a whole number above 0"),
        (["--models", "resnet18,resnet19"], "--models knows resnet18, .* not 'resnet19'"),
        (["--out", "file/below"], "the folder file/below cannot be made"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert command.main([*arguments, "--quick"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("benchmarks: ") and said.count("\n") == 1
    assert re.search(words, said)


def test_the_commands_of_the_document_are_understood():
    lines = re.findall(r"^python -m (benchmarks.*?) *(?:#.*)?$", (ROOT / "docs" / "performance.md").read_text(), re.M)
    assert len(lines) >= 6
    for line in lines:
        module, *words = line.split()
        if module == "benchmarks.clean_pass":
            build.compose([word for word in clean_pass._options(words).overrides if "dataset.path" not in word])
        else:
            assert set(command._parser().parse_args(words).models) <= set(ladder.MODELS)


def test_what_was_measured_before_an_interruption_is_written(tmp_path, monkeypatch, capsys):
    def interrupted(bench):
        row = bench.row("step", "a network", "a rung")
        row.samples.append(3.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(step, "measure", interrupted)
    assert command.main(["augmentation", "step", "--quick", "--out", str(tmp_path)]) == 130
    plain, text = written(tmp_path)
    assert plain["state"] == "interrupted" and "**interrupted.**" in text
    assert {row["part"] for row in plain["rows"]} == {"augmentation", "step"}
    assert plain["rows"][-1]["median"] == 3.0


def test_without_kornia_its_column_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    assert command.main(["augmentation", "--quick", "--repeats", "1", "--out", str(tmp_path)]) == 0
    rows = [row for row in written(tmp_path)[0]["rows"] if row["name"] == "kornia"]
    assert [row["note"] for row in rows] == ["not installed (pip install -e '.[bench]')"] * 3


# ---- Timing and tables --------------------------------------------------------------------------------------------


def test_candidates_take_turns_after_their_warm_up():
    calls: list[str] = []
    rows = [Measured("part", "group", name) for name in "ab"]
    interleave([Candidate(row, lambda row=row: calls.append(row.name), images=5) for row in rows], 3, 0.0, CPU)
    assert "".join(calls) == "ab" + "ababab"
    assert [len(row.samples) for row in rows] == [3, 3] and min(rows[0].samples) > 0


def test_a_sample_has_as_many_calls_as_take_its_time(monkeypatch):
    clock = [0.0]

    def work():
        clock[0] += 2**-8

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    rows = [Measured("part", "group", "by time", "s"), Measured("part", "group", "by image")]
    interleave([Candidate(rows[0], work), Candidate(rows[1], work, 3)], 2, 0.25, CPU)
    assert rows[0].samples == [2**-8] * 2 and rows[1].samples == [3 * 2**8] * 2
    before = clock[0]
    interleave([Candidate(rows[0], work)], 1, 0.25, CPU)
    assert clock[0] - before > 0.5  # so long the last ones before it took, and the sample itself
    before = clock[0]
    interleave([Candidate(rows[0], work, takes_long=True)], 2, 0.25, CPU)
    assert clock[0] - before == 2 * 2**-8


def test_who_fails_says_so_and_the_others_are_measured(capsys):
    def fail():
        raise ValueError("no such kernel\nand more")

    def burst():
        raise torch.OutOfMemoryError("CUDA out of memory")

    rows = [Measured("part", "group", name) for name in ("fails", "bursts", "works")]
    interleave([Candidate(r, f, 1) for r, f in zip(rows, (fail, burst, int), strict=True)], 2, 0.0, CPU)
    assert [row.note for row in rows] == ["failed: ValueError: no such kernel", "out of memory", ""]
    assert [row.failed for row in rows] == [True, False, False]
    assert [len(row.samples) for row in rows] == [0, 0, 2]


def test_medians_and_quartiles_equal_numpy_s():
    import numpy as np

    samples = torch.rand(8, generator=torch.Generator().manual_seed(0)).tolist()
    assert summary(samples) == pytest.approx(
        {
            "median": np.median(samples),
            "low": min(samples),
            "high": max(samples),
            "q1": np.quantile(samples, 0.25),
            "q3": np.quantile(samples, 0.75),
        }
    )
    assert set(summary([2.0]).values()) == {2.0}


def test_a_table_reads_as_it_should(tmp_path):
    book = Book(tmp_path / "new" / "book", HEAD)
    book.add(Measured("step", "net", "plain", samples=[10.0, 12.0, 20.0], columns={"×": 1.0}))
    book.add(Measured("step", "net", "a|b", samples=[1_234_567.0], columns={"×": 102880.58}))
    book.add(Measured("step", "net", "impossible", note="left out"))
    book.add(Measured("step", "net", "begun"))
    book.note("step", "A note.")
    book.done()
    text = (tmp_path / "new" / "book.md").read_text()
    assert (
        "| net        |           images/s |       × |          |\n"
        "|:-----------|-------------------:|--------:|:---------|\n"
        "| plain      | 12.0 (10.0 – 20.0) |    1.00 |          |\n"
        "| a\\|b       |          1,234,567 | 102,881 |          |\n"
        "| impossible |                  – |       – | left out |\n"
        "\n"
        "- A note.\n"
    ) in text
    assert [row["name"] for row in json.loads((tmp_path / "new" / "book.json").read_text())["rows"]] == [
        "plain",
        "a|b",
        "impossible",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1e6, "1,000,000"), (99.96, "100.0"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.0123")],
)
def test_numbers_have_three_digits_that_matter(value, text):
    assert tables.number(value) == text


def test_the_overhead_of_a_job_is_what_neither_the_check_nor_a_run_takes():
    assert startup.overhead(sweep=33.0, check=6.0, jobs=3, single=8.0) == 1.0


# ---- The ladder ---------------------------------------------------------------------------------------------------


def test_each_rung_changes_one_thing():
    def flat(node: dict, prefix: str = "") -> dict:
        parts = [flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v} for k, v in node.items()]
        return {key: value for part in parts for key, value in part.items()}

    steps = ladder.ladder("cuda", bf16=True, compile=True)
    configs = [flat(build.plain(build.compose([*TINY, *s.overrides]))) for s in steps]
    changed = [
        {key: b.get(key) for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
        for a, b in itertools.pairwise(configs)
    ]
    assert changed == [
        {},  # who makes the views is no matter of the config
        {"trainer.clean_pass": "off"},
        {"decoder.skip_order": "commuted"},
        {"trainer.channels_last": True},
        {"precision": "tf32"},
        {"precision": "bf16"},
        {"optimizer.kwargs.fused": True},
        {"trainer.compile": True},
        {"trainer.cuda_graphs": True},
    ]


def test_a_cpu_leaves_out_what_it_cannot_do_and_builds_on_the_rest():
    steps = ladder.ladder("cpu", bf16=False, compile=False)
    left_out = {s.name for s in steps if s.left_out}
    assert left_out == {"+ TF32", "+ bf16", "+ compile", "+ CUDA graphs"}
    assert not any("bf16" in override for s in steps for override in s.overrides)
    assert {s.name for s in ladder.ladder("cpu", bf16=True, compile=True) if s.left_out} == {"+ TF32", "+ CUDA graphs"}


def test_the_network_for_cpus_has_no_skips_to_order():
    network = ladder.MODELS["cpu"]
    steps = ladder.ladder("cpu", bf16=True, compile=False, skips=network.skips)
    assert {s.name for s in steps if s.left_out} == {"+ commuted skip", "+ TF32", "+ compile", "+ CUDA graphs"}
    cfg = build.compose([*ladder.DATA, *network.overrides, *steps[-1].overrides])
    assert (cfg.precision, cfg.trainer.channels_last, cfg.trainer.clean_pass) == ("bf16", True, "off")


def test_the_networks_are_the_paper_s():
    for name in ladder.PAPER:
        cfg = build.compose([*ladder.DATA, *ladder.MODELS[name].overrides])
        assert cfg.latent_dim == 128
        with torch.device("meta"):
            model = build.model(cfg)
        encoder = sum(p.numel() for p in model.encoder.parameters())
        assert encoder == {"resnet18": 11_168_832, "resnet50": 23_500_352, "resnet50-96": 23_508_032}[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "clean_pass", "gflop"),
    [  # spec §5
        ("resnet50", "off", 10.83),
        ("resnet50", "every_step", 13.44),
        ("resnet50-96", "off", 24.39),
        ("resnet50-96", "every_step", 30.28),
    ],
)
def test_the_flop_of_a_step_are_those_of_the_paper_s_networks(model, clean_pass, gflop):
    overrides = (*ladder.DATA, *ladder.MODELS[model].overrides, "trainer=reference", f"trainer.clean_pass={clean_pass}")
    counted = flop_per_image((*overrides, "precision=bf16", "trainer.compile=true", "batch_size=64"))
    # A little less: nobody wants the gradient of the images.
    assert 0.997 * gflop < counted / 1e9 < 1.0005 * gflop


def test_a_matrix_product_has_a_speed_in_every_precision():
    assert all(1e6 < matrix_peak(precision, CPU, (32, 64)) < 1e16 for precision in ("fp32", "bf16"))


# ---- Fairness -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released():
    """Losses of three steps of the reference rung, the batches it saw (in [0, 1]), and its images."""
    torch.manual_seed(0)
    cfg = build.compose([*TINY, *ladder.ladder("cpu", False, False)[0].overrides])
    trainer, workers = reference.reference(cfg, CPU, workers=1)
    trainer.model.train()
    facts, batches, losses = build.dataset(cfg), [], []
    try:
        for _ in range(3):
            with workers.running():
                batch = next(workers)
            batches.append(Batch(facts.denormalize(batch.clean), facts.denormalize(batch.source), cropped=True))
            losses.append(trainer.train_step(batch)["loss"].item())
    finally:
        workers.close()
    return losses, batches, trainer.dataset["pretrain"].images


@pytest.mark.parametrize(
    "rung", [s for s in ladder.ladder("cpu", False, False)[1:] if not s.left_out], ids=lambda rung: rung.name
)
def test_every_float32_rung_has_the_reference_s_loss_on_the_same_views(released, rung):
    losses, batches, _ = released
    trainer = build.trainer(build.compose([*TINY, "precision=fp32", *rung.overrides]))
    trainer.model.train()
    trainer.augmentation = Pipeline()  # the views are there already
    assert [trainer.train_step(batch)["loss"].item() for batch in batches] == pytest.approx(losses, rel=1e-5)


def test_the_reference_s_workers_hand_out_dataset_images_and_views_of_them(released):
    _, batches, images = released
    for batch in batches:
        clean = (batch.clean * 255).round().to(torch.uint8)
        distance = (clean[:, None].int() - images[None].int()).abs().amax((2, 3, 4))
        assert (distance.amin(1) == 0).all()
        assert len(batch.clean) == 8 and (batch.source - batch.clean).abs().amax((1, 2, 3)).min() > 0


def test_workers_that_are_stopped_do_nothing():
    cfg = build.compose([*TINY, *ladder.ladder("cpu", False, False)[0].overrides])
    _, workers = reference.reference(cfg, CPU, workers=1)
    [process] = workers.processes
    try:
        with workers.running():
            next(workers)
        for _ in range(1000):
            if (state := Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]) == "T":
                break
        assert state == "T"
    finally:
        workers.close()
    process.join(10)
    assert not process.is_alive()


def test_the_rivals_make_views_of_the_same_kind():
    """Same size and units, and about the same distribution of pixels as ours."""
    torch.manual_seed(0)
    ours = SimCLRViews(0.5, 0.5)
    images = augmentation._images(32, 64) // 2 + 32
    mean, std = augmentation.MEAN, augmentation.STD
    floats = images.float() / 255
    constants = [torch.tensor(c).view(3, 1, 1) for c in (mean, std)]
    mine = (ours(floats, torch.Generator().manual_seed(0)) - constants[0]) / constants[1]
    theirs = {
        "pil": torch.stack([rivals.pil(ours, 32, mean, std)(p) for p in rivals.pictures(images)]),
        "v2": torch.stack([rivals.torchvision_v2(ours, 32, mean, std)(image) for image in images]),
        "kornia": rivals.kornia(ours, 32, mean, std)(floats),
    }
    for name, views in theirs.items():
        assert views.shape == (64, 3, 32, 32) and views.dtype == torch.float32, name
        torch.testing.assert_close(views.mean((0, 2, 3)), mine.mean((0, 2, 3)), atol=0.2, rtol=0)
        assert views.std((1, 2, 3)).unique().numel() > 32, name  # a draw for each image


# ---- What waits ---------------------------------------------------------------------------------------------------


def test_a_step_that_reads_back_fails_on_the_meta_device(tmp_path, monkeypatch):
    from aavae.training.meter import Meter

    add = Meter.add
    monkeypatch.setattr(Meter, "add", lambda self, terms: (add(self, terms), terms["loss"].item()))
    assert command.main(["syncs", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 1
    rows = written(tmp_path)[0]["rows"]
    assert rows and all(row["failed"] and not row["samples"] for row in rows)


def test_what_the_profiler_saw_is_counted():
    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU

    def event(name, device, microseconds):
        return SimpleNamespace(
            name=name, device_type=device, time_range=SimpleNamespace(elapsed_us=lambda: microseconds)
        )

    events = [
        event("cudaMemcpyAsync", cpu, 5),  # from pinned memory: it does not wait
        event("cudaStreamSynchronize", cpu, 9),
        event("Memcpy DtoH (Device -> Pageable)", cuda, 2),
        event("gemm", cuda, 30),
        event("gemm", cuda, 40),
    ]
    calls, busy = syncs.seen(events)
    assert calls == {"cudaStreamSynchronize": 1, "cudaEventSynchronize": 0, "cudaMemcpy": 0, "Memcpy DtoH": 1}
    assert busy.most_common(1) == [("gemm", 70)]
