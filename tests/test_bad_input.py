"""Overrides, YAML files and the bytes of every kind of file, as Hypothesis makes them: a valid plan, or one sentence.

`make test` tries about 200, `make test-faults` as many as FAULTS says. What has failed once is an @example.
"""

import copy
import io
import json
import os
import shutil
import sys
import zipfile
from collections import Counter
from pathlib import Path

import faults
import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from run_folders import a_run, a_sweep, record
from test_kept import KEPT

from aavae import build, convert, embed, manage, report
from aavae.config.schema import Schema
from aavae.config.sources import SHIPPED
from aavae.datasets.store import Store
from aavae.evaluate import Evaluate
from aavae.runs.results import write_results
from aavae.train import Train
from aavae.weights import checkpoint, encoder_file
from aavae.weights.load import load_encoder, load_trained

pytestmark = pytest.mark.faults

KEYS = sorted(Schema(build.compose(()), "config").keys())
GROUPS = sorted(build.groups())


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """The folder of all commands."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("desk")
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture
def tried(record_property):
    """How many examples came to which end; printed after all tests."""
    counter = Counter()
    yield counter
    record_property("examples", dict(counter))


def below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


# ---- Overrides ----------------------------------------------------------------------------------------------------


def shown(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


SWEPT = ["range(1,3)", "choice(1,2)", "interval(0,1)", "sort(3,1)", "1,2", "int(1.5)", "cast(1)", "glob(*)",
         "shuffle(1,2)", "tag(a,1)", "extend_list(1)", "float(x)", "bool(3)"]  # fmt: skip
OPTIONS = ["--config-dir=nowhere", "--package=loss", "--resolve", "-m", "--", "-", "--cfg=all", "-x", "--run=3"]
HYDRAS = ["hydra.run.dir", "hydra.sweep.dir", "hydra.searchpath", "hydra.job.name", "hydra.mode", "hydra/launcher",
          "hydra.verbose", "hydra/job_logging", "hydra.job.chdir", "hydra.output_subdir"]  # fmt: skip


def either(names: list[str]):
    return st.sampled_from(names)


WORDS = st.one_of(
    st.tuples(either(KEYS), faults.DATA).map(lambda pair: f"{pair[0]}={shown(pair[1])}"),
    st.tuples(either(KEYS), faults.SCALARS).map(lambda pair: f"{pair[0]}='{pair[1]}'"),
    st.tuples(either(["", "+", "++", "~"]), either(KEYS + GROUPS), faults.ODD).map("{0[0]}{0[1]}={0[2]}".format),
    st.tuples(either(GROUPS), faults.TEXTS | either(["none", "default", "[a,b]", "a,b", "glob(*)"])).map("=".join),
    st.tuples(either(KEYS), either(["a", "x.y", "0", "_target_", "é"]), faults.SCALARS).map(
        lambda t: f"{t[0]}.{t[1]}={shown(t[2])}"
    ),
    st.tuples(either(KEYS), either(SWEPT)).map("=".join),
    st.tuples(either(HYDRAS), faults.SCALARS).map(lambda pair: f"{pair[0]}={shown(pair[1])}"),
    faults.TEXTS,
    faults.ODD,
    either(OPTIONS),
)


@faults.examples(0.3)
@given(words=st.lists(WORDS, min_size=1, max_size=4))
@example(words=["model.takes=0"])
@example(words=["method.x.y=1"])
@example(words=[f"augmentation={'9' * 5000}"])
@example(words=[f"method='{'x' * 300}'"])
@example(words=["features=" + "[" * 3000])
@example(words=["trainer._target_=1"])
@example(words=["+schedule._target_=x"])
def test_overrides(desk, tried, words):
    argv = ["--cfg", "job", *words]
    before = below(desk)
    faults.command("aavae-train", lambda: Train().execute(list(argv)), argv, tried)
    assert below(desk) == before


SMALL = [
    "dataset=synthetic",
    "encoder=resnet_tiny",
    "decoder=resnet_tiny",
    "latent_dim=3",
    "batch_size=8",
    "trainer=debug",
]
# Not those between: a hundred million of something may be meant, and takes the memory of the machine that tests.
ORDINARY = st.sampled_from(
    [0, 1, 2, 3, 7, -1, -(10**9), 0.5, -0.5, 1e-9, 10**30, 1e300, "nan", "inf", "1e999", "null", "true", "[]", "[1,2]",
     "{}", "{a: 1}", "''", "auto", "x", "é", "[0.5,2]", "[a]", "[null]"]
)  # fmt: skip
PLANNED = [key for key in KEYS if not key.startswith(("hydra", "sweep", "logger", "data_dir", "dry_run"))]


@faults.examples(0.05)
@given(changes=st.lists(st.tuples(st.sampled_from(PLANNED), ORDINARY), min_size=1, max_size=2))
def test_plans(desk, tried, changes):
    argv = [*SMALL, "probe=knn", "dry_run=true", *(f"{key}={value}" for key, value in changes)]
    before = below(desk)
    faults.command("aavae-train", lambda: Train().execute(list(argv)), argv, tried)
    assert below(desk) == before


def checked() -> int:
    (source, target), settings = convert.TYPED.read(sys.argv[1:])
    convert._checked(source, target, settings)
    return 0


SETTINGS = {
    "aavae-embed": (embed._work, embed.OPTIONS, ["run=aavae.pt", "images=nowhere", "out=f.npz"]),
    "aavae-convert": (checked, convert.OPTIONS, ["aavae.pt", "a.pt"]),
    "aavae-runs": (manage._work, manage.COMMANDS, ["ls"]),
}


@faults.examples(0.02)
@given(data=st.data(), name=st.sampled_from(sorted(SETTINGS)))
def test_words_of_other_commands(desk, tried, data, name):
    work, options, base = SETTINGS[name]
    word = st.tuples(either(sorted(options)) | faults.TEXTS, faults.TEXTS | faults.ODD).map("=".join)
    odd = st.one_of(
        word, faults.TEXTS, faults.ODD, either(["--", "-", "--run=1", "-n", "--json", "--overwrite", "-x=1"])
    )
    odd = odd.filter(lambda word: word not in ("/", "~", ".."))  # in which `ls` would look for runs
    words = [*data.draw(st.sampled_from([base, base[:1], []])), *data.draw(st.lists(odd, max_size=3))]
    before = below(desk)
    faults.command(name, work, words, tried, good=(0, 1))
    assert below(desk) == before


EVALUATED = sorted(Schema(build.compose((), None, "evaluate"), "evaluate").keys())


@faults.examples(0.03)
@given(
    words=st.lists(
        st.tuples(either(EVALUATED), faults.DATA).map(lambda p: f"{p[0]}={shown(p[1])}") | faults.ODD, max_size=3
    )
)
def test_words_of_evaluate(desk, tried, words):
    argv = ["--cfg", "job", *words]
    before = below(desk)
    faults.command("aavae-evaluate", lambda: Evaluate().execute(list(argv)), argv, tried)
    assert below(desk) == before


# ---- YAML ---------------------------------------------------------------------------------------------------------


FILES = [p for p in sorted(SHIPPED.glob("*/*.yaml")) if p.parent.name not in ("wandb", "hydra")]


@st.composite
def own_file(draw) -> tuple[str, bytes]:
    """A group, and a file of an option in it: a shipped one with edits, or one of other content."""
    path = draw(st.sampled_from(FILES))
    if draw(st.booleans()):
        return path.parent.name, draw(faults.damaged(path.read_bytes()))
    said = yaml.safe_load(path.read_text()) or {}
    keys = st.sampled_from([*said, "defaults", "_target_", "x", "_self_", "${x}", "a.b", "_recursive_", "_convert_"])
    content = draw(st.dictionaries(keys, faults.DATA, max_size=4) | faults.DATA)
    content = {**said, **content} if isinstance(content, dict) and draw(st.booleans()) else content
    packages = ["_global_", "loss", "${x}", "a.b", ""]
    head = draw(st.sampled_from(["", *(f"# @package {package}\n" for package in packages)]))
    return path.parent.name, (head + yaml.safe_dump(content, allow_unicode=True)).encode("utf-8", "surrogateescape")


@faults.examples(0.15)
@given(file=own_file())
@example(file=("loss", b"a: &a [0]\n" + b"b: [*a, *a]\n"))
@example(file=("loss", b"[" * 900))
@example(file=("augmentation", b"defaults:\n- ? ''\n  : null\n"))
@example(file=("loss", b"\xef\xbb\xbfbeta: 1\n"))
@example(file=("probe", b"# @package loss\n-1\n"))
@example(file=("loss", b"beta: !!python/object/apply:os.getcwd []\n"))
def test_own_yaml(desk, tried, file):
    group, content = file
    shutil.rmtree(desk / "own", ignore_errors=True)
    (desk / "own" / group).mkdir(parents=True)
    (desk / "own" / group / "mine.yaml").write_bytes(content)
    argv = ["--config-dir", "own", f"{group}={'[mine]' if group in ('probe', 'logger') else 'mine'}", "--cfg", "job"]
    before = below(desk)
    faults.command("aavae-train", lambda: Train().execute(list(argv)), argv, tried)
    assert below(desk) == before


# ---- Small files of runs ------------------------------------------------------------------------------------------


SMALL_FILES = ("status.json", "results.json", "config.yaml", "notes.json", "metrics.jsonl", "provenance.json")
NAMES = ("sweep.json", *(f"0/{name}" for name in SMALL_FILES))


@pytest.fixture(scope="module")
def shelf(desk):
    """A sweep with two runs that have all small files, and the content of these files by name."""
    folder = desk / "multirun/first"
    a_sweep(folder, "seed=0", "seed=1")
    began = "2026-11-28T10:00:00+01:00"
    said = {"epoch": 3.0, "step": 30, "seconds": 5.0, "command": "aavae-train seed=1", "started": began}
    git = {"commit": "abc", "dirty": True, "remote": None}
    session = {"started": began, "command": "x", "git": git, "versions": {"torch": "2"}, "device": "cpu"}
    lines = [json.dumps({"step": n, "epoch": n / 10, "train/loss": 1 / (n + 1)}) for n in range(9)]
    for seed in (0, 1):
        run = a_run(folder / str(seed), seed=seed, said=said)
        write_results(run, [record(value=0.5 + seed / 10), record("linear")])
        (run / "notes.json").write_text(json.dumps({"notes": [{"time": began, "text": "x"}], "tags": ["t"]}))
        (run / "metrics.jsonl").write_text("\n".join([*lines, ""]))
        (run / "provenance.json").write_text(json.dumps([session]))
    return folder, {name: (folder / name).read_bytes() for name in NAMES}


@st.composite
def other_content(draw, name: str, data: bytes) -> bytes:
    """The file's bytes with edits, or its content with other values in it."""
    if draw(st.booleans()):
        return draw(faults.damaged(data))
    text = data.decode().strip()
    if name.endswith(".jsonl"):
        lines = [json.loads(line) for line in text.splitlines()]
        lines[draw(st.integers(0, len(lines) - 1))] = draw(changed(lines[0]))
        return "".join(json.dumps(line) + "\n" for line in lines).encode("utf-8", "surrogatepass")
    content = draw(changed(yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)))
    said = yaml.safe_dump(content, allow_unicode=True) if name.endswith(".yaml") else json.dumps(content)
    return said.encode("utf-8", "surrogateescape")


@st.composite
def changed(draw, content):
    """Plain data with another value somewhere in it, or without one."""
    content = copy.deepcopy(content)
    if not isinstance(content, dict | list) or not content or draw(st.integers(0, 9)) == 0:
        return draw(faults.DATA)
    at = draw(st.sampled_from(list(content) if isinstance(content, dict) else range(len(content))))
    if draw(st.integers(0, 7)) == 0:
        del content[at]
    elif isinstance(content[at], dict | list) and draw(st.integers(0, 3)):
        content[at] = draw(changed(content[at]))
    else:
        content[at] = draw(faults.DATA)
    return content


RUN = "multirun/first/0"
RUNS = (["ls"], ["ls", "--json"], ["show", RUN], ["diff", RUN, "multirun/first/1"], ["best"], ["prune"], ["tail", RUN],
        ["ls", "seed=1", "sort=score"])  # fmt: skip


@faults.examples(0.2)
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_files_of_runs(shelf, tried, data, name):
    folder, whole = shelf
    content = data.draw(other_content(name, whole[name]))
    words = data.draw(st.sampled_from(RUNS))
    (folder / name).write_bytes(content)
    try:
        if name == "0/status.json" and words[0] == "tail":
            words = ["ls"]  # it would wait for a run that says it is running
        faults.command("aavae-runs", manage._work, words, tried, good=(0, 1))
    finally:
        (folder / name).write_bytes(whole[name])


@faults.examples(0.05)
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_reports(shelf, tried, data, name):
    folder, whole = shelf
    (folder / name).write_bytes(data.draw(other_content(name, whole[name])))
    try:
        # 2 also where a run is damaged, which the table says.
        faults.command("aavae-report", report._work, ["multirun/first"], tried, good=(0, 1, 2))
    finally:
        (folder / name).write_bytes(whole[name])


def test_numbers_that_no_float_holds(shelf, tried):
    folder, whole = shelf
    numbers = {"config.yaml": b"seed: 0", "status.json": b'"step": 30', "metrics.jsonl": b'"step": 0'}
    for name, before in ((f"0/{name}", before) for name, before in numbers.items()):
        content = whole[name].replace(before, before.rstrip(b"0123456789") + b"9" * 400)
        (folder / name).write_bytes(content)
        for words in RUNS:
            if words[0] != "tail":
                faults.command("aavae-runs", manage._work, words, tried, good=(0, 1))
        (folder / name).write_bytes(whole[name])


# ---- Weights ------------------------------------------------------------------------------------------------------


def weights(path: Path, tried: Counter) -> None:
    found = faults.refusal(lambda: load_trained(path), tried)
    assert isinstance(found, Exception) or hasattr(found, "model")
    faults.refusal(lambda: load_encoder(path), Counter())


@pytest.fixture(scope="module")
def kept():
    """The content of checkpoints and an encoder file of earlier versions."""
    return {name: (KEPT / name).read_bytes() for name in ("aavae.pt", "simclr.pt", "encoder.safetensors")}


@faults.examples(0.05)
@given(data=st.data(), name=st.sampled_from(["aavae.pt", "simclr.pt", "encoder.safetensors"]))
def test_bytes_of_weights(desk, tried, kept, data, name):
    (desk / name).write_bytes(data.draw(faults.damaged(kept[name])))
    weights(desk / name, tried)


@faults.examples(0.05)
@given(data=st.data())
def test_pickles_of_checkpoints(desk, tried, kept, data):
    """Edits in the pickle, whose checksum is right all the same."""
    with zipfile.ZipFile(io.BytesIO(kept["simclr.pt"])) as whole, zipfile.ZipFile(desk / "a.pt", "w") as other:
        for member in whole.namelist():
            content = whole.read(member)
            other.writestr(member, data.draw(faults.damaged(content)) if member.endswith("data.pkl") else content)
    weights(desk / "a.pt", tried)


@pytest.fixture(scope="module")
def state():
    return checkpoint.load(KEPT / "aavae.pt")


@faults.examples(0.05)
@given(data=st.data())
def test_contents_of_checkpoints(desk, tried, state, data):
    """Other values, whose digest is right."""
    rest = {k: v for k, v in state.items() if k not in ("model", "optimizer")}
    other = data.draw(changed(rest))
    other = {k: v for k, v in other.items() if k != "format"} if isinstance(other, dict) else {"config": other}
    try:
        checkpoint.save(desk / "b.pt", {"model": state["model"]} | other)
    except (OverflowError, UnicodeError, RuntimeError):  # what torch cannot write
        return
    weights(desk / "b.pt", tried)


@faults.examples(0.03)
@given(data=st.data())
def test_facts_of_encoders(desk, tried, data):
    tensors, facts = encoder_file.read(KEPT / "encoder.safetensors")
    layer = torch.nn.Module()
    layer.state_dict = lambda: tensors
    other = data.draw(changed(facts))
    try:
        encoder_file.save(desk / "c.safetensors", layer, other if isinstance(other, dict) else {"architecture": other})
    except (ValueError, TypeError):  # what JSON cannot write
        return
    weights(desk / "c.safetensors", tried)


@faults.examples(0.02)
@given(data=st.data(), name=st.sampled_from(["aavae.pt", "encoder.safetensors"]))
def test_commands_on_weights(desk, tried, kept, data, name):
    (desk / name).write_bytes(data.draw(faults.damaged(kept[name])))
    target = "out.safetensors"
    (desk / target).unlink(missing_ok=True)

    def work() -> int:
        (source, target), settings = convert.TYPED.read(sys.argv[1:])
        print(convert.convert(**convert._checked(source, target, settings)))
        return 0

    code, _, _ = faults.command("aavae-convert", work, [name, target], tried)
    assert (code == 0) == (desk / target).exists()
    argv = [f"checkpoint={name}", "probe=knn"]
    before = below(desk)
    if code == 2:
        code, _, _ = faults.command("aavae-evaluate", lambda: Evaluate().execute(list(argv)), argv, tried)
        assert code == 2 and below(desk) == before


# ---- Images -------------------------------------------------------------------------------------------------------


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((12, 9)).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


KINDS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP", "ppm": "PPM"}
PICTURES = {end: picture(kind) for end, kind in KINDS.items()}


@faults.examples(0.1)
@given(data=st.data(), end=st.sampled_from(sorted(KINDS)))
def test_images(desk, tried, data, end):
    folder = desk / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / f"a.{end}").write_bytes(data.draw(faults.damaged(PICTURES[end])))
    found = faults.refusal(lambda: Store(folder).read([f"a.{end}"], 8)[0], tried)
    assert isinstance(found, Exception) or found.shape == (1, 3, 8, 8)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as images:
        for name in ("x/cat/a.png", "x/cat/b.jpg", "x/dog/é.png", "x/notes.txt"):
            images.writestr(name, PICTURES["jpg" if name.endswith("jpg") else "png"])
    return buffer.getvalue()


ZIP = zipped()


@faults.examples(0.1)
@given(content=faults.damaged(ZIP))
def test_zips(desk, tried, content):
    (desk / "images.zip").write_bytes(content)

    def read():
        store = Store(desk / "images.zip")
        return store.read(store.check(store.names), 8)[0]

    found = faults.refusal(read, tried)
    assert isinstance(found, Exception) or found.shape[1:] == (3, 8, 8)
