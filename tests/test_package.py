"""What a stranger gets: the wheel, the Makefile, and the commands the README shows."""

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from aavae import build

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SHELL = [
    line.split(" #")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()
]
COMMANDS = [shlex.split(line) for line in SHELL if line.startswith("aavae-train")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what a built wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    build_wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder]
    copy = folder / "source"  # building leaves traces in the source
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*build_wheel, copy], check=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_every_config(installed):
    source = {p.relative_to(ROOT) for p in (ROOT / "aavae").rglob("*.py")}
    source |= {p.relative_to(ROOT) for p in (ROOT / "aavae" / "conf").rglob("*.yaml")}
    assert source <= {p.relative_to(installed) for p in installed.rglob("*")}


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(installed, tmp_path):
    command = [sys.executable, "-m", "aavae.train", "experiment=digits", "epochs=1", "probe=knn", "hydra.run.dir=run"]
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run" / "results.json").exists()
    where = [sys.executable, "-c", "import aavae, aavae.conf; print(aavae.__file__, aavae.conf.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout.split()
    assert len(found) == 2 and all(path.startswith(str(installed)) for path in found)


@pytest.fixture
def beside_a_clone(tmp_path):
    """A folder with a clone named `aavae`, as `git clone … aavae` leaves it: no package, but of the package's name."""
    (tmp_path / "aavae" / "aavae").mkdir(parents=True)
    (tmp_path / "aavae" / "setup.cfg").touch()
    return {"cwd": tmp_path, "env": {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}}


def test_a_script_beside_the_clone_imports_the_package(beside_a_clone):
    script = "import aavae, aavae.conf; print(aavae.load_encoder, aavae.load_model)"
    subprocess.run([sys.executable, "-c", script], **beside_a_clone, check=True)


@pytest.mark.slow
def test_a_sweep_beside_the_clone_runs_its_jobs(beside_a_clone, tmp_path):
    small = ("trainer=debug", "trainer.max_steps=1", "trainer.validate_every=0", "probe=[]")
    command = [sys.executable, "-m", "aavae.train", "-m", *small, "seed=0,1", "sweep.name=s"]
    ended = subprocess.run(command, **beside_a_clone, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(list(tmp_path.glob("multirun/s/*/encoder.safetensors"))) == 2


def test_the_makefile_has_what_the_readme_shows():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    shown = set(re.findall(r"make ([a-z]+)", README))
    assert {"demo", "test", "setup"} <= shown <= targets


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m" not in c], ids=" ".join)
def test_every_command_of_the_readme_builds(command, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("0.png")
    with zipfile.ZipFile("photos.zip", "w") as photos:
        photos.write("0.png")
    cfg = build.compose(command[1:])
    with torch.device("meta"):
        assert build.model(cfg).variational in (True, False)


@pytest.mark.slow
def test_the_first_sweep_runs(train, quick_jobs):
    [command] = [c for c in COMMANDS if "-m" in c]
    ended = train(*command[1:], "trainer.max_steps=1", "trainer.validate_every=0", "probe=[]", "seed=0")
    assert ended.code == 0, ended.err
    assert len(list(Path("multirun").glob("*/*/encoder.safetensors"))) == 5


@pytest.mark.slow
def test_the_python_of_the_readme_runs(train):
    assert train("experiment=digits", "hydra.run.dir=outputs/demo", "trainer.max_steps=1", "probe=knn").code == 0
    [block] = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(block, names)
    assert names["encoder"].output_dim == 128 and len(names["digits"]["test"]) == 300
    x = names["digits"].normalize(names["digits"]["test"].images[:4].float() / 255)
    assert names["model"](x, torch.zeros(4, 32)).x_hat.shape == x.shape
    assert names["encoder"](x).shape == (4, 128)


def test_the_options_the_readme_lists_are_those_there_are():
    for group, cell in re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.M):
        there = {p.stem for p in (ROOT / "conf" / group).glob("*.yaml")} - (
            {"none"} if group == "experiment" else set()
        )
        assert set(re.findall(r"`(\w+)`", cell)) == there, group
