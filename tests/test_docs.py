"""The documents, played from top to bottom as a reader would, and the notebooks; what they claim is looked up."""

import contextlib
import json
import re
import shlex
import shutil
import sys
import zipfile
from pathlib import Path

import fault_table
import lightning_files
import numpy as np
import pytest
import torch
from PIL import Image

from aavae import build, load_encoder
from aavae.convert import KINDS
from aavae.datasets.folder import ImageNet
from aavae.embed import OPTIONS
from aavae.errors import UserError
from aavae.reports.shelf import FACTS
from aavae.sweeps.grid import Grid
from aavae.training import health
from aavae.training.flops import training_flop
from experiments.artefact import SETTINGS, parse
from experiments.paper import SCALES
from experiments.runs import Runs

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Whose images are on every machine, or made here; of other commands the model is built, without data or memory.
AT_HAND = ("digits", "synthetic", "image_folder", "cells")
SHORT = {"trainer.max_steps": 1, "trainer.validate_every": 0, "batch_size": 8}
AS_TYPED = ("aavae-convert", "aavae-runs", "aavae-embed")
DOWNLOADS = "encoder.pretrained=true"  # timm's weights, for which there is no network
MANY = 3  # jobs; a larger sweep is checked, and not run, as is one whose jobs an optimiser chooses
SMALL = {
    "few_label": {"draws": 2},
    "linear_cached": {"steps": 2, "weight_decays": "[0.1]"},
    "similarity": {"images": 4, "views": 2, "shown": 2, "features": "[h]"},
    "geometry": {"images": 8, "features": "[mu]"},
    "embedding": {"images": 8},
    "linear": {"epochs": 1},
    "protocols": {"epochs": 1, "steps": 2, "weight_decays": "[0.1]"},
    "semi": {"epochs": "[1,1]", "features": "[h]"},
    "finetune": {"epochs": 1, "features": "[h]"},
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of a short `make demo`, made once."""
    from aavae.train import main

    folder = tmp_path_factory.mktemp("demo")
    arguments = ["experiment=digits", "hydra.run.dir=outputs/demo", "trainer.max_steps=2", "trainer.log_every=1"]
    arguments += ["trainer.clip=1", "probe=[knn,few_label,online]", "probe.few_label.draws=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["aavae-train", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return folder / "outputs" / "demo"


# ---- Playing ------------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(demo, tmp_path, monkeypatch):
    """A folder with what the pages take for granted: runs, photographs, cells, and the authors' checkpoints."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo, tmp_path / "outputs/demo")
    noise = np.random.default_rng(0).integers(0, 256, (60, 20, 24, 3), dtype=np.uint8)
    for i, image in enumerate(noise):
        for path in (tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i}.png", tmp_path / "loose" / f"{i}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted((tmp_path / "photos").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    np.savez(tmp_path / "cells.npz", images=noise[:, :16, :16], labels=np.arange(60) % 4)
    for i, image in enumerate(noise):
        path = tmp_path / "cifar" / ("train", "test")[i // 10 % 2] / f"{i % 10}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((32, 32)).save(path)
    for name, encoder, parameters in (
        ("aavae_cifar10.ckpt", ["dataset=cifar10", "encoder=resnet_tiny"], lightning_files.CIFAR),
        ("theirs.ckpt", ["dataset=imagenet", "encoder=resnet18"], lightning_files.NO_PARAMETERS),
    ):
        model = build.model(build.compose([*encoder, "dataset.path=cifar", "decoder=resnet_tiny"]))
        lightning_files.write(tmp_path / name, model.state_dict(), parameters)
    return tmp_path


def shortened(program: str, arguments: list[str]) -> list[str]:
    """The arguments with tiny networks, few steps and small probes; what is asked for stays."""
    networks = ("encoder=resnet", "decoder=resnet")
    kept = [a for a in arguments if not a.startswith(networks)]
    given = {a.split("=")[0] for a in kept}
    kept += ["dataset.path=cifar"] if "checkpoint=aavae_cifar10.ckpt" in kept else []
    probes = [p for a in kept if a.startswith("probe=") for p in re.findall(r"\w+", a)[1:]]
    settings = {"features": "[h]"} if probes and "features" not in given else {}
    if program == "aavae-train":
        settings |= {key: value for key, value in SHORT.items() if not ("-m" in arguments and key in given)}
        without = {"decoder"} if "model" in given or "method=simclr" in arguments else set()
        settings |= {group: "resnet_tiny" for group in {"encoder", "decoder"} - given - without}
        settings |= {} if probes else {"probe": "[]"}
    elif not probes:
        probes = build.compose([], primary="evaluate").probe
    settings |= {f"probe.{p}.{k}": v for p in probes for k, v in SMALL.get(p, {}).items()}
    return [*kept, *(f"{k}={v}" for k, v in settings.items())]


def dataset_of(arguments: list[str]) -> str:
    chosen = dict(a.partition("=")[::2] for a in arguments)
    return chosen.get("dataset") or chosen.get("experiment", "cifar10")


@contextlib.contextmanager
def own_modules(folder: Path, findable: bool = True):
    """What a process of its own would import from `folder`, and forget when it ends."""
    with pytest.MonkeyPatch.context() as patch:
        if findable:
            patch.syspath_prepend(folder)
        yield
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(folder)):
                del sys.modules[name]


def play(line: str, desk: Path, commands: dict) -> None:
    words = shlex.split(line, comments=True)
    findable = words[0] == "PYTHONPATH=."
    program, *arguments = words[findable:]
    if program not in commands or "NAME" in line or DOWNLOADS in line:
        return
    sweeping = program == "aavae-train" and "-m" in arguments
    grid = Grid([a for a in arguments if a != "-m"], None, "config") if sweeping else None
    jobs = grid.jobs() if grid else [arguments]
    if program == "aavae-train" and dataset_of(arguments) not in AT_HAND:
        with torch.device("meta"):
            for job in (jobs[0], jobs[-1]):
                build.model(build.compose(job))
        return
    if len(jobs) > MANY or (grid and not grid.complete):
        arguments.append("dry_run=true")
    with own_modules(desk, findable):
        asked = arguments if program in AS_TYPED else shortened(program, arguments)
        ended = commands[program](*asked)
    assert ended.code == 0, f"{line}\n{ended.err}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_page_can_be_played_from_top_to_bottom(page, desk, train, evaluate, convert, runs, embed, quick_jobs):
    text, names = page.read_text(), {}
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.S | re.M):
        if file := re.match(r"# (\S+\.(?:py|yaml))\n", block):
            (desk / file[1]).parent.mkdir(parents=True, exist_ok=True)
            (desk / file[1]).write_text(block)
        elif kind == "python":
            with own_modules(desk):
                exec(block, names)
        elif kind == "sh":
            for line in block.replace("\\\n", " ").splitlines():
                commands = {"aavae-train": train, "aavae-evaluate": evaluate, "aavae-convert": convert}
                play(line, desk, commands | {"aavae-runs": runs, "aavae-embed": embed})
    if "wandb" in sys.modules:  # its service would outlive the test
        sys.modules["wandb"].teardown()
    for path in re.findall(r"`(outputs/[\w./]+)`", text):
        assert (desk / path).exists(), path
    check = globals().get(f"after_{page.stem}")
    if check:
        check(desk)


def after_logging(desk):
    rows = [row.split(",") for row in (desk / "outputs/own/numbers.csv").read_text().splitlines()]
    logged = (desk / "outputs/own/metrics.jsonl").read_text().splitlines()
    assert len(rows) == sum(len(json.loads(line)) - 2 for line in logged) > 0
    assert list((desk / "outputs/watched/tensorboard").iterdir()) and list(desk.glob("outputs/*/wandb/offline-run-*"))


@pytest.mark.slow
def test_the_evaluations_and_conversions_of_the_readme_run(desk, evaluate, convert):
    def commands(text):
        return {line.split(" #")[0].strip() for line in re.findall(r"^aavae-(?:evaluate|convert) .*", text, re.M)}

    more = commands((ROOT / "README.md").read_text()) - commands("\n".join(page.read_text() for page in PAGES))
    assert more
    for line in sorted(more):
        play(line, desk, {"aavae-evaluate": evaluate, "aavae-convert": convert})


def after_methods(desk):
    with own_modules(desk):
        encoder = load_encoder(desk / "outputs/own", trust=("flat",))
    assert encoder(torch.zeros(2, 3, 16, 16)).shape == (2, encoder.output_dim)
    found = json.loads((desk / "outputs/simsiam/results.json").read_text())
    assert {(r["probe"], r["feature"]) for r in found} >= {("knn", "h")}
    assert len(list(desk.glob("multirun/*/*/last.pt"))) == 3  # of the sweep over beta


def after_tutorial(desk):
    records = [r for path in desk.glob("outputs/photos/*/results.json") for r in json.loads(path.read_text())]
    found = {(r["probe"], r["feature"]) for r in records}
    assert found >= {("few_label_1", "h"), ("linear_cached", "h"), ("finetune", "h")}


def after_probes(desk):
    records = json.loads((desk / "outputs/demo/results.json").read_text())
    # What ten probes found, and the eleventh of one's own, stand beside each other.
    assert {r["probe"].split("_")[0] for r in records} >= {"knn", "semi", "online", "centroids"}


# ---- Notebooks ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(notebook, demo, tmp_path, monkeypatch):
    shutil.copytree(demo, tmp_path / "outputs" / "demo")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec("".join(cell["source"]).replace("plt.show()", "plt.close()"), names)
    globals()[f"after_{notebook.stem}"](names)


def after_embed_images(names):
    assert names["features"].shape == (1797, 128)
    assert 0.2 < names["accuracy"] <= 1


def after_load_an_encoder(names):
    assert names["neighbours"][:, 0].tolist() == list(range(6)) and names["x_hat"].shape == (8, 3, 16, 16)
    clean = names["model"](names["digits"].normalize(names["images"][:2]), torch.zeros(2, 32)).x_hat
    ends = torch.stack([names["between"][0][0], names["between"][0][-1]])
    torch.testing.assert_close(ends, names["digits"].denormalize(clean), atol=1e-5, rtol=0)
    assert 0.2 < names["accuracy"] <= 1


def after_read_a_run(names):
    assert names["curve"]("val/loss")[0] == (0.2,)  # two steps of ten
    assert {r["probe"] for r in names["records"]} == {"knn", "few_label_1", "few_label_5", "online"}
    assert names["sessions"][-1]["seed"] == names["cfg"].seed == 0 and names["status"]["state"] == "done"


# ---- Claims -------------------------------------------------------------------------------------------------------


def table(page: str, corner: str) -> dict[str, list[str]]:
    """The table with this first cell of its header: the cells by the first one of their row."""
    lines = (ROOT / "docs" / f"{page}.md").read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"| {corner}".rstrip()))
    rows = {}
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name.strip("`")] = cells
    return rows


def in_backticks(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return re.findall(r"`([^`]+)`", prose)


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS, ROOT / "README.md"], ids=lambda p: p.stem)
def test_links_and_paths_lead_to_files(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for path in in_backticks(text):
        if re.fullmatch(r"(aavae|conf|tests|notebooks|docs|experiments)/[\w/.]+", path):
            assert (ROOT / path).exists(), path


# Between them these have every key.
BASES = (
    ("config", ["probe=[knn,online,linear]", "logger=[wandb,tensorboard]"]),
    ("config", ["loss=mse", "dataset=stl10"]),
    ("config", ["dataset=image_folder", "method=simclr"]),
    ("config", ["dataset=digits", "method=cpc", "encoder=patches_tiny"]),
    ("config", ["dataset=digits", "method=spark"]),
    ("config", ["encoder=timm"]),
    ("evaluate", []),
)


def composes(setting: str) -> bool:
    setting = setting if "[" in setting else setting.split(",")[0]  # of a sweep, its first value
    for primary, others in BASES:
        group = setting.split("=")[0]
        with contextlib.suppress(UserError):
            build.compose([*(o for o in others if o.split("=")[0] != group), setting], primary=primary)
            return True
    return False


def dotted(node: dict, prefix: str = "") -> set[str]:
    """The keys, those of branches too."""
    keys = set()
    for key, value in node.items():
        keys |= {prefix + key} | (dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else set())
    return keys


@pytest.fixture(scope="module")
def known():
    """Every key that a command takes."""
    return set().union(*(dotted(build.plain(build.compose(others, primary=primary))) for primary, others in BASES))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_setting_that_is_mentioned_exists(page, known):
    groups = "|".join(k for k in known if "." not in k)
    for words in in_backticks(page.read_text()):
        for word in shlex.split(words):
            key, equals, value = word.partition("=")
            if equals and re.fullmatch(r"[a-z_.0-9]+", key) and re.fullmatch(r"[^A-Z…<]+", value):
                elsewhere = (
                    key in (*FACTS, "sort", *OPTIONS)
                    or (key == "to" and value in KINDS)
                    or (key in SETTINGS and parse([f"{key}={value.split('|')[0]}"]))
                )
                assert key.startswith("hydra") or elsewhere or composes(word), word
            elif re.fullmatch(
                rf"({groups})(\.\w+)+(?<!\.py)(?<!\.safetensors)(?<!\.tex)(?<!\.html)(?<!\.csv)(?<!\.md)", word
            ):
                assert word in known, word


def test_the_datasets_are_as_described(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / part / "cat" / "0.png")
    sizes, facts = table("datasets", "`dataset=`"), table("datasets", "|")
    assert sizes.keys() == facts.keys() == set(build.options("dataset"))
    for name in sizes.keys() - {"image_folder"}:
        data = ImageNet(tmp_path) if name == "imagenet" else build.dataset(build.compose([f"dataset={name}"]))
        classes = 1000 if name == "imagenet" else data.num_classes
        assert [int(cell) for cell in sizes[name][2:4]] == [data.image_size, classes], name
        _, stem, strength, blur_p, trained_on = facts[name]
        assert stem == data.stem and "crops" in trained_on
        assert ("flips" in trained_on) == (data.crops().flip_p > 0), name
        assert ("resized" in trained_on) == data.crops().crops, name
        if name != "digits":
            assert (float(strength), float(blur_p)) == (data.strength, data.blur_p), name
        if name in ("digits", "synthetic"):
            told = [int(n.replace(",", "")) for cell in sizes[name][:2] for n in re.findall(r"\d[\d,]*", cell)]
            assert told == [len(data[s]) for s in ("pretrain", "pretrain_val", "train", "val", "test")], name


def test_the_scales_of_the_paper_s_runs_are_as_described():
    rows = table("paper", "scale")
    assert rows.keys() == SCALES.keys()
    for name, (networks, seeds, _) in rows.items():
        runs = Runs(SCALES[name], [], Path("none"))
        presets = [word for own in runs.scale.datasets.values() for word in own]
        for dataset in runs.scale.datasets:
            assert f"{build.compose(runs.words(dataset, ())).epochs} epochs" in networks, name
        for preset in re.findall(r"`(experiment=\w+)`", networks):
            assert preset in presets, name
        assert seeds == ", ".join(map(str, runs.scale.seeds)), name


def test_the_methods_are_as_described():
    rows = table("methods", "`method=`")
    every = table("methods", "all methods")
    assert rows.keys() <= every.keys() == set(build.options("method"))
    for name, (sees, gives, z, minimised, beta) in rows.items():
        cfg = build.compose([f"method={name}"])
        loss = build.loss(cfg)
        augments = build.augmentation(cfg).augments
        assert sees.split(":")[0] == ("view" if augments else "image"), name
        assert gives == {"original": "clean image", "view": "view"}[loss.target], name
        assert z == ("drawn" if cfg.loss.get("sample") == "reparam" else "μ"), name
        assert minimised.startswith("−log p(x∣z)" if loss.variational else "squared error"), name
        assert beta == (f"{loss.beta:g}" if loss.variational else "–"), name


@pytest.mark.slow
def test_the_products_of_methods_are_counted():
    """For a ResNet-50 at 32², relative to AAVAE."""

    def products(*overrides: str) -> float:
        cfg = build.compose(["dataset=cifar10", *overrides])
        data = build.dataset(cfg)
        with torch.device("meta"):
            model = build.model(cfg, data)
        return training_flop(model, data.image_size, cfg.trainer.clean_pass == "every_step", cfg.batch_size)

    base = products()
    assert f"{base / 2e9:.2f} GMAC" in (ROOT / "docs/methods.md").read_text()
    for name, row in table("methods", "all methods").items():
        own = products(f"method={name}", *(["encoder=patches50"] if name == "cpc" else []))
        assert f"{own / base:.2f}" == row[5], name


def test_every_fault_is_in_the_table_and_has_tests():
    rows = table("faults", "fault")
    assert list(rows) == [row.fault.strip("`") for row in fault_table.ROWS]
    for row, (how, times, outcome) in zip(fault_table.ROWS, rows.values(), strict=True):
        assert how == row.how and int(times.replace(",", "")) > 0 and outcome.startswith(row.outcome), row.fault
        assert not re.search(r"[A-Z]{4} (FAILED|SKIPPED)", outcome), row.fault
        for start in row.tests:
            path, _, name = start.partition("::")
            assert f"\ndef {name}" in (ROOT / path).read_text(), start


def test_every_probe_is_described():
    assert table("probes", "`probe=`").keys() == set(build.options("probe"))


def test_every_name_that_is_logged_is_described(demo):
    lines = [json.loads(line) for line in (demo / "metrics.jsonl").read_text().splitlines()]
    logged = {name.split("/")[-1] for line in lines for name in line} - {"step", "epoch", "images_per_second"}
    described = {name for row in table("methods", "name") for name in in_backticks(f"`{row}`")}
    assert logged == described - {"", "spread", "rank", "invariance", "variance", "covariance", "sigreg"}


def test_every_warning_is_described_with_its_thresholds():
    rows = table("logging", "warning")
    own = health.Health(batch_size=1, steps_per_epoch=1, warmup_steps=0)
    assert list(rows) == [rule.name for rule in own.rules]

    def numbers(name: str) -> list[float]:
        return [float(number) for number in re.findall(r"[\d.]+", rows[name][1])]

    for rule in own.rules:
        if isinstance(rule, health.Bound):
            assert numbers(rule.name) == [rule.limit, rule.lines]
            assert rows[rule.name][0] == f"`{rule.metric}`"
            assert ("below" if rule.above else "above") in rows[rule.name][1]
    assert numbers("flat") == [health.FLAT_LINES, health.FLAT_STEPS, health.BLOCKS, health.NOISE]
    assert numbers("speed") == [health.SLOW, health.SLOW_LINES, health.SLOW_SECONDS]
    assert f"`speed` at {health.FAST_AGAIN:g}" in (ROOT / "docs/logging.md").read_text()


def test_every_file_of_a_run_is_described(demo):
    described = {name for row in table("logging", "file") for name in re.findall(r"[\w.<>/]+", row)}
    assert {p.name for p in demo.iterdir()} - {".lock"} <= described


def test_every_key_of_provenance_and_results_is_described(demo):
    def keys(page, corner):
        return {key for row in table(page, corner) for key in re.findall(r"\w+", row)}

    [session] = json.loads((demo / "provenance.json").read_text())
    results = json.loads((demo / "results.json").read_text())
    assert keys("logging", "key") - {"or", "evaluates"} == session.keys()
    assert keys("probes", "key") == results[0].keys()
