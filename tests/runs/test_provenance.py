"""Where a run comes from: git as it is, versions, machine; one entry a session."""

import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import aavae
from aavae.errors import UserError
from aavae.runs import provenance as module
from aavae.runs.provenance import Checkout, checkout, note, provenance

CPU = torch.device("cpu")


def git(folder: Path, *arguments: str) -> str:
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command = ["git", "-C", str(folder), *author, "-c", "commit.gpgsign=false", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def repository(folder: Path) -> Path:
    """A repository whose one commit tracks `package/__init__.py` and ignores `ignored`."""
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "__init__.py").write_text("")
    (folder / ".gitignore").write_text("ignored\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


def program(folder: Path, script: str) -> None:
    """A `git` that is a shell script."""
    folder.mkdir()
    (folder / "git").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "git").chmod(0o755)


@pytest.fixture
def repo(tmp_path):
    return repository(tmp_path / "repo")


@pytest.fixture
def ours(repo, monkeypatch):
    """aavae as if it had been imported from `repo`."""
    monkeypatch.setattr(aavae, "__file__", str(repo / "package" / "__init__.py"))
    return repo


# ---- git ----------------------------------------------------------------------------------------------------------


def test_a_clean_checkout_is_its_commit(repo):
    expected = Checkout(str(repo), git(repo, "rev-parse", "HEAD"), False)
    assert checkout(repo) == checkout(repo / "package", "__init__.py") == expected
    (repo / "ignored").touch()
    assert checkout(repo) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda repo: (repo / "package" / "__init__.py").write_text("x = 1"),
        lambda repo: (repo / "new.py").touch(),
        lambda repo: (repo / ".gitignore").unlink(),
        lambda repo: ((repo / "new.py").touch(), git(repo, "add", "new.py")),
    ],
    ids=["modified", "untracked", "deleted", "staged"],
)
def test_a_changed_checkout_is_dirty(repo, change):
    git(repo, "config", "status.showUntrackedFiles", "no")
    assert checkout(repo / "package", "__init__.py").dirty is False
    change(repo)
    assert checkout(repo / "package", "__init__.py").dirty is True


def test_a_folder_of_runs_changes_nothing(repo):
    run = repo / "my runs" / "first"
    (run / ".hydra").mkdir(parents=True)
    for name in ("config.yaml", ".hydra/overrides.yaml", "metrics.jsonl", "last.pt"):
        (run / name).touch()
    assert checkout(repo / "package", "__init__.py").dirty is False
    (run.parent / "model.py").touch()
    assert checkout(repo / "package", "__init__.py").dirty is True


def test_looking_leaves_the_repository_alone(repo):
    def content():
        return {p: p.stat().st_mtime_ns for p in (repo / ".git").rglob("*")}

    os.utime(repo / "package" / "__init__.py", (0, 0))  # git would refresh its index
    before = content()
    assert checkout(repo).dirty is False
    assert content() == before


def test_what_is_no_checkout_is_none(tmp_path):
    assert checkout(tmp_path) is None
    git(tmp_path, "init", "--quiet")  # without a commit
    assert checkout(tmp_path) is None


def test_a_repository_around_a_package_that_it_does_not_track_is_not_reported(repo):
    site = repo / "ignored" / "site-packages" / "aavae"
    site.mkdir(parents=True)
    (site / "__init__.py").touch()
    assert checkout(site).root == str(repo)
    assert checkout(site, "__init__.py") is None


def test_variables_of_a_git_hook_do_not_mislead(repo, tmp_path, monkeypatch):
    other = repository(tmp_path / "other")
    (other / "untracked").touch()
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert checkout(repo) == Checkout(str(repo), git(repo, "rev-parse", "HEAD"), False)


def test_without_git_there_is_nothing_to_report(repo, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert checkout(repo) is None


def test_a_git_that_hangs_is_given_up(repo, tmp_path, monkeypatch):
    real = shutil.which("git")
    program(tmp_path / "slow", f'case "$*" in *status*) exec sleep 60;; esac\nexec {real} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'slow'}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    assert checkout(repo) == Checkout(str(repo), git(repo, "rev-parse", "HEAD"), None)
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    assert checkout(repo) is None


def test_git_can_ask_nothing(repo, tmp_path, monkeypatch):
    program(tmp_path / "asking", f'echo "$GIT_TERMINAL_PROMPT" > {tmp_path}/prompt; cat > {tmp_path}/typed; exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path / 'asking'}:{os.environ['PATH']}")
    assert checkout(repo) is None
    assert (tmp_path / "prompt").read_text() == "0\n" and (tmp_path / "typed").read_text() == ""


@pytest.mark.parametrize(
    ("remote", "said"),
    [
        ("https://github.com/team/project.git", "https://github.com/team/project.git"),
        ("https://me:secret@host.org:8443/a/b", "https://host.org:8443/a/b"),
        ("https://token@github.com/team/project", "https://github.com/team/project"),
        ("https://me@work.org:p@ss@host.org/a@b", "https://host.org/a@b"),
        ("ssh://me@host.org/a", "ssh://host.org/a"),
        ("git@github.com:team/project.git", "git@github.com:team/project.git"),
        ("me@host.org:project.git", None),
        ("/home/me/project", None),
        ("file:///home/me/project", None),
        ("../project", None),
    ],
)
def test_a_remote_is_told_without_names_passwords_and_paths(repo, remote, said):
    git(repo, "remote", "add", "origin", remote)
    assert checkout(repo).remote == said


# ---- An entry -----------------------------------------------------------------------------------------------------


def test_an_entry_says_what_one_needs_to_repeat_a_run(ours, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    entry = provenance(CPU, "aavae-train seed=3", 3, "abc", processes=2)
    assert json.loads(json.dumps(entry)) == entry
    assert entry["git"] == {"commit": git(ours, "rev-parse", "HEAD"), "dirty": False, "remote": None}
    assert entry["git_here"] is None
    for package in ("aavae", "torch", "torchvision", "timm", "hydra-core", "numpy"):
        assert entry["versions"][package] == version(package)
    assert entry["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (entry["command"], entry["seed"], entry["data"], entry["processes"]) == ("aavae-train seed=3", 3, "abc", 2)
    assert entry["threads"] == torch.get_num_threads() and entry["platform"] == platform.platform()
    started = datetime.datetime.fromisoformat(entry["started"])
    assert started.tzinfo and abs(datetime.datetime.now(datetime.UTC) - started) < datetime.timedelta(minutes=5)


def test_the_cpu_has_its_name():
    entry = provenance(CPU, "c", 0, "d")
    if cpuinfo := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M):
        assert entry["device"] == cpuinfo[1].strip()
    assert entry["device"]
    assert not entry["versions"].keys() & {"cuda", "cudnn", "driver"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_has_its_name_and_versions():
    entry = provenance(torch.device("cuda", 0), "c", 0, "d")
    assert entry["device"] == torch.cuda.get_device_name(0)
    assert entry["versions"]["cuda"] == torch.version.cuda
    assert re.fullmatch(r"\d+", entry["versions"]["cudnn"]) and re.fullmatch(r"[\d.]+", entry["versions"]["driver"])


def test_machine_user_and_paths_stay_private(ours, monkeypatch):
    monkeypatch.chdir(ours)
    text = json.dumps(provenance(CPU, "c", 0, "d"))
    for private in (platform.node(), str(ours), str(Path.home()), sys.prefix):
        assert private not in text, private


def test_the_repository_one_works_in_is_reported_if_it_is_another(ours, tmp_path, monkeypatch):
    monkeypatch.chdir(ours / "package")
    assert provenance(CPU, "c", 0, "d")["git_here"] is None
    mine = repository(tmp_path / "mine")
    (mine / "untracked.py").touch()
    monkeypatch.chdir(mine)
    entry = provenance(CPU, "c", 0, "d")
    assert entry["git_here"] == {"commit": git(mine, "rev-parse", "HEAD"), "dirty": True, "remote": None}
    assert entry["git"] == {"commit": git(ours, "rev-parse", "HEAD"), "dirty": False, "remote": None}


def test_an_installed_aavae_has_no_commit_but_the_work_around_it_has(tmp_path, monkeypatch):
    mine = repository(tmp_path / "mine")
    site = mine / "ignored" / "aavae"
    site.mkdir(parents=True)
    (site / "__init__.py").touch()
    monkeypatch.setattr(aavae, "__file__", str(site / "__init__.py"))
    monkeypatch.chdir(mine)
    entry = provenance(CPU, "c", 0, "d")
    assert entry["git"] is None and entry["git_here"]["commit"] == git(mine, "rev-parse", "HEAD")


# ---- The file -----------------------------------------------------------------------------------------------------


def test_every_session_has_an_entry(tmp_path, capfd):
    note(tmp_path, {"step": 0})
    note(tmp_path, {"step": 10, "seed": 1})
    assert json.loads((tmp_path / "provenance.json").read_text()) == [{"step": 0}, {"step": 10, "seed": 1}]
    assert [p.name for p in tmp_path.iterdir()] == ["provenance.json"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b'[{"step": 0', b'{"step": 0}', b"\xff\xfe\x00"])
def test_a_damaged_file_is_kept_aside_and_said(tmp_path, capfd, content):
    (tmp_path / "provenance.json").write_bytes(content)
    note(tmp_path, {"step": 10})
    assert json.loads((tmp_path / "provenance.json").read_text()) == [{"step": 10}]
    assert (tmp_path / "provenance.json.damaged").read_bytes() == content
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "kept as provenance.json.damaged" in said.err


def test_a_file_that_cannot_be_written_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*provenance\.json"):
        note(tmp_path / "nowhere", {"step": 0})
