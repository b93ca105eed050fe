"""`aavae-train -m` from the outside: what survives, what is refused, what is gone on with."""

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from bombs import BOMB

from aavae import build
from aavae.build import quoted
from aavae.errors import UserError
from aavae.runs import status
from aavae.runs import sweep as sweeps
from aavae.runs.identity import identity
from aavae.runs.sweep import Job
from aavae.runtime import files
from aavae.sweeps import preflight
from aavae.sweeps import sweep as multirun
from aavae.sweeps.grid import Grid, swept_by
from aavae.sweeps.sweep import Multirun, is_done
from aavae.train import Train

SMALL = ("trainer=debug", "trainer.max_steps=1", "trainer.validate_every=0", "probe=[]")


@pytest.fixture
def sweep(quick_jobs, train):
    """`aavae-train -m` with small jobs."""
    return lambda *arguments: train("-m", *SMALL, *arguments)


def jobs(folder: str) -> dict[str, Path]:
    """The jobs of a sweep: their folders by name."""
    return {job["name"]: Path(folder, job["folder"]) for job in sweeps.read(Path(folder))["jobs"]}


def states(folder: str) -> dict[str, str]:
    found = {name: status.read(place) for name, place in jobs(folder).items()}
    return {name: said["state"] if said else "never begun" for name, said in found.items()}


def stamps(*folders: Path) -> dict[Path, int]:
    """When what is in the folders was last written."""
    return {p: p.stat().st_mtime_ns for folder in folders for p in folder.iterdir() if p.name != ".lock"}


# ---- What survives ------------------------------------------------------------------------------------------------

# A probe of one's own that fails seed 1, kills seed 2, and with seed 3 stops the sweep, until it is mended.
FATE = """
import os, signal, time
from pathlib import Path
from aavae.runs import status
from aavae.probes import record

class Fate:
    def __init__(self, seed: int):
        self.seed = seed

    def run(self, encode, dataset):
        if not Path("mended").exists():
            self.strike()
        return [record("fate", encode.name, "test", 0.5 + self.seed / 100, 1, "as it comes")]

    def strike(self):
        if self.seed == 1:
            raise RuntimeError("struck by fate")
        if self.seed == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.seed == 3:
            others = Path("multirun/story").glob
            while [status.read(p.parent)["state"] for p in others("*/status.json")].count("failed") < 2:
                time.sleep(0.05)
            os.kill(int(os.environ["LAUNCHER"]), signal.SIGINT)
            time.sleep(600)
"""


@pytest.fixture
def fate(tmp_path, monkeypatch):
    """What a user adds with --config-dir and PYTHONPATH."""
    (tmp_path / "conf" / "probe").mkdir(parents=True)
    (tmp_path / "modules").mkdir()
    config = "# Mine.\nfate:\n  _target_: fate.Fate\n  features: [h]\n  seed: ${seed}\n"
    (tmp_path / "conf" / "probe" / "fate.yaml").write_text(config)
    (tmp_path / "modules" / "fate.py").write_text(FATE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("LAUNCHER", str(os.getpid()))
    yield
    sys.modules.pop("fate", None)


@pytest.mark.slow
def test_a_sweep_survives_what_its_jobs_do_and_is_gone_on_with(quick_jobs, train, fate):
    settings = ("probe=fate", "sweep.name=story", "hydra.launcher.n_jobs=2")
    command = ("--config-dir", "conf", "-m", *SMALL[:-1], *settings, "seed=0,1,2,3,4,5")
    names = [f"seed={i}" for i in range(6)]

    ended = train(*command)
    assert ended.code == 130, ended.err
    found, place = states("multirun/story"), jobs("multirun/story")
    assert list(found) == names
    assert [found[name] for name in names[:4]] == ["done", "failed", "failed", "interrupted"]
    assert found["seed=5"] == "never begun" and found["seed=4"] in ("never begun", "pending", "interrupted")
    reasons = [status.read(place[name])["reason"] for name in names[:4]]
    assert reasons == [
        None,
        "RuntimeError: struck by fate",
        "killed by SIGKILL, as when memory runs out",
        "stopped by SIGTERM",
    ]
    log = (place["seed=1"] / "log.txt").read_text()
    assert "Traceback" in log and 'fate.py", line' in log
    for text in (ended.out, Path("multirun/story/sweep.md").read_text()):
        assert "1 done" in text and "2 failed" in text and "struck by fate" in text and "killed by SIGKILL" in text
    assert "continue with\n  aavae-train sweep.resume=multirun/story" in ended.out
    assert "6 jobs" in ended.out and "job 1 (seed=1) failed: RuntimeError: struck by fate" in ended.out

    Path("mended").touch()
    before = stamps(place["seed=0"])
    ended = train("sweep.resume=multirun/story", "hydra.launcher.n_jobs=2")
    assert ended.code == 0, ended.out + ended.err
    assert states("multirun/story") == dict.fromkeys(names, "done")
    assert "6 jobs, 1 of them done" in ended.out and "job 0" not in ended.out
    assert stamps(place["seed=0"]) == before
    for name in ("seed=1", "seed=2", "seed=3"):  # trained already
        sessions = json.loads((place[name] / "provenance.json").read_text())
        assert [session["step"] for session in sessions] == [0, 1]
        assert "from step 1" in (place[name] / "log.txt").read_text()
    assert "Traceback" in (place["seed=1"] / "log.txt").read_text()  # what went wrong is still there
    assert "52.5 ± 1.9" in ended.out  # mean and standard deviation of 0.50, 0.51, … 0.55
    rows = Path("multirun/story/sweep.csv").read_text().splitlines()
    assert len(rows) == 7

    before = stamps(*place.values())
    ended = train(*command[:-1], "seed=0,1,2,3,4,5,6")
    assert ended.code == 0 and "7 jobs, 6 of them done" in ended.out
    assert stamps(*place.values()) == before
    assert states("multirun/story") == dict.fromkeys([*names, "seed=6"], "done")
    known = sweeps.read(Path("multirun/story"))
    assert [launch["overrides"][-1] for launch in known["launches"]] == ["seed=0,1,2,3,4,5", "seed=0,1,2,3,4,5,6"]


@pytest.mark.slow
def test_real_processes_end_each_for_itself(train, monkeypatch):
    monkeypatch.setattr(preflight, "preflight", preflight._examine)
    arguments = ("optimizer.lr=0.001,1e30", "schedule.warmup_epochs=0", "trainer.max_steps=4", "trainer.log_every=1")
    ended = train("-m", "trainer=debug", "probe=[]", *arguments, "sweep.name='a b=c'", "hydra.launcher.n_jobs=2")
    assert ended.code == 1, ended.err
    good, bad = jobs("multirun/a b=c").values()
    assert (good / "encoder.safetensors").exists() and status.read(good)["state"] == "done"
    assert "the loss became" in status.read(bad)["reason"]
    assert re.search(r"^failed +optimizer\.lr=\S+: .*the loss became", ended.out, re.M)
    assert (bad / "log.txt").read_text().rstrip().splitlines()[-1].startswith("aavae-train: ")
    said = status.read(good)
    assert said["pid"] not in (os.getpid(), status.read(bad)["pid"])
    assert f"hydra.run.dir={Path.cwd()}/multirun/a b=c/" in said["command"].replace("'", "").replace('"', "")


# ---- Going on -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_that_never_saved_begins_afresh_and_one_that_lost_its_checkpoint_says_so(sweep):
    assert sweep("seed=0,1", "sweep.name=s").code == 0
    for name, place in jobs("multirun/s").items():
        for path in place.glob("*.pt"):
            path.unlink()
        status.write(place, "interrupted", **({"saved": None} if name == "seed=0" else {}))
    ended = sweep("seed=0,1", "sweep.name=s")
    assert ended.code == 1
    assert states("multirun/s") == {"seed=0": "done", "seed=1": "failed"}
    assert "had a checkpoint of step 1, which is gone" in ended.out
    again = sweep("seed=0,1", "sweep.name=s")  # and goes on saying so
    assert again.code == 1 and "which is gone" in again.out


@pytest.mark.slow
def test_what_is_asked_for_anew_is_done_anew_and_begun_afresh_once(sweep, train):
    assert sweep("seed=0", "sweep.name=s").code == 0
    (place,) = jobs("multirun/s").values()
    assert not (place / "results.json").exists()  # no probes, no results, and done all the same
    ended = sweep("seed=0", "sweep.name=s", "probe=knn")
    assert ended.code == 0 and "of them done" not in ended.out and (place / "results.json").exists()
    ended = sweep("seed=0", "sweep.name=s", "trainer.max_steps=2")
    assert ended.code == 0 and status.read(place)["step"] == 2
    ended = sweep("seed=0", "sweep.name=s", "trainer.max_steps=2", "resume=never")
    assert ended.code == 0 and "of them done" not in ended.out
    (session,) = json.loads((place / "provenance.json").read_text())
    assert session["step"] == 0
    assert not any(
        "resume=" in word for launch in sweeps.read(place.parent)["launches"] for word in launch["overrides"]
    )


@pytest.mark.slow
def test_going_on_takes_other_ways_of_launching_and_nothing_else(sweep, train, tmp_path):
    assert sweep("seed=0,1", "hydra.sweep.dir=own", "hydra.launcher.n_jobs=2").code == 0
    place = jobs("own")
    shutil.rmtree(place["seed=1"])
    assert not any("hydra" in o for o in sweeps.read(Path("own"))["launches"][0]["overrides"])
    ended = train("sweep.resume=own", "dry_run=true")
    assert ended.code == 0 and "2 jobs, 1 of them done" in ended.out and not place["seed=1"].exists()
    assert train("sweep.resume=own", "-m", "hydra.launcher.n_jobs=1").code == 0
    assert states("own") == {"seed=0": "done", "seed=1": "done"}
    for others, words in (
        (["sweep.resume=own", "seed=3"], "without seed=3"),
        (["sweep.resume=nowhere"], "nowhere is not the folder of a sweep"),
        (["sweep.resume=multirun"], "not the folder of a sweep"),
    ):
        ended = train(*others)
        assert ended.code == 2 and words in ended.err and ended.err.count("\n") == 1
    Path("own/sweep.json").write_text('{"launches": [{}]}')
    ended = train("sweep.resume=own")
    assert ended.code == 2 and "sweep.json is damaged" in ended.err
    ended = sweep("seed=0,1", "hydra.sweep.dir=own")
    assert ended.code == 2 and "sweep.json is damaged" in ended.err and "Traceback" not in ended.err


@pytest.mark.slow
def test_a_sweep_goes_on_from_anywhere(quick_jobs, train, tmp_path, monkeypatch, fate):
    Path("mended").touch()
    assert (
        train("--config-dir", "conf", "-m", *SMALL[:-1], "probe=fate", "seed=0", "hydra.sweep.dir='a b/c=d'").code == 0
    )
    assert sweeps.read(Path("a b/c=d"))["launches"][0]["config_dir"] == str(tmp_path / "conf")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    ended = train("sweep.resume=../a b/c=d")
    assert ended.code == 0 and "1 job, 1 of them done" in ended.out, ended.err


@pytest.mark.slow
def test_the_folder_is_that_of_what_is_swept_however_it_is_launched(sweep):
    ways = (
        ["dry_run=true"],
        ["hydra.launcher.n_jobs=2"],
        ["hydra/launcher=basic"],
        ["sweep.max_jobs=7"],
        ["resume=never"],
    )
    known = swept_by(["method=vae", "seed=0,1"])
    assert all(swept_by(["method=vae", "seed=0,1,2", *way]) == known for way in ways)
    assert swept_by(["seed=0,1", "method=vae"]) == known
    for other in (["method=ae", "seed=0,1"], ["method=vae", "latent_dim=0,1"], ["method=vae", "seed=0"]):
        assert swept_by(other) != known
    dry = sweep("seed=0", "dry_run=true").out.splitlines()[0]
    assert not Path("multirun").exists()
    assert sweep("seed=0").out.splitlines()[0] == dry
    assert "1 of them done" in sweep("seed=0", "dry_run=true").out


@pytest.mark.slow
def test_the_folder_is_as_typed(sweep):
    where = "~/a 'b'/x=[z]"
    ended = sweep("seed=0", f"hydra.sweep.dir={quoted(where)}")
    assert ended.code == 0, ended.err
    (place,) = jobs(where).values()
    assert place.parent == Path(where) and (place / "log.txt").exists()
    assert {p.name for p in Path(where).iterdir() if p.is_file()} == {
        ".lock", "multirun.yaml", "sweep.csv", "sweep.html", "sweep.json", "sweep.md", "sweep.tex",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "swept", "name"),
    [
        ("optimizer.lr=0.1", (), "optimizer.lr=0.1"),
        ("optimizer.lr=0.1 seed=0", ("seed=0,1",), "optimizer.lr=0.1 seed=0"),
        ("optimizer.lr=0.1", ("seed=0,1",), "seed=0"),
        ("optimizer.lr=0.1", ("optimizer.lr=0.1,1", "seed=0,1"), "optimizer.lr=0.1 seed=0"),
        ("single", ("seed=0,1",), "seed=0"),
        ("", (), "single"),
    ],
)
def test_a_job_keeps_the_name_that_says_more(before, swept, name):
    sweep, folder = Multirun(Train(), ["experiment=digits", *swept], None), Path("multirun/s/job")
    sweep.names = {folder: before}
    assert sweep.name_of(sweep.grid.jobs()[0], folder) == name


# ---- Other launchers ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_jobs_of_another_launcher_are_checked_summed_up_and_gone_on_with(sweep, train):
    basic = ("sweep.name=s", "hydra/launcher=basic")
    ended = sweep("seed=0,1", *basic, "batch_size=9999")
    assert ended.code == 2 and "2 of 2 jobs are impossible" in ended.err and not Path("multirun").exists()
    assert sweep("seed=0", *basic).code == 0
    assert states("multirun/s") == {"single": "done"}
    (place,) = jobs("multirun/s").values()
    for path in place.glob("*.pt"):
        path.unlink()
    status.write(place, "interrupted")
    ended = train("sweep.resume=multirun/s")
    assert ended.code == 1 and "which is gone" in ended.out
    ended = train("sweep.resume=multirun/s", "hydra/launcher=processes")
    assert ended.code == 1 and "which is gone" in ended.out


@pytest.mark.slow
def test_a_sweeper_gets_the_scores_batch_by_batch(sweep, monkeypatch):
    from hydra.core.plugins import Plugins

    Plugins.instance()  # which imports all of them anew, once
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    search, got = BasicSweeper.sweep, []
    monkeypatch.setattr(BasicSweeper, "sweep", lambda self, arguments: got.append(search(self, arguments)) or got[-1])
    limits = (
        "hydra.sweeper.max_batch_size=1",
        "schedule.warmup_epochs=0",
        "trainer.max_steps=4",
        "trainer.log_every=1",
        "trainer.validate_every=1",
    )
    ended = sweep("optimizer.lr=1e30,1e-3", *limits, "sweep.name=s")
    assert ended.code == 1
    ((first, second),) = got
    scores = [returned.return_value for returned in (*first, *second)]
    said = [status.read(place) for place in jobs("multirun/s").values()]
    assert scores == [None, said[1]["score"]] and scores[1] is not None
    assert len(sweeps.read(Path("multirun/s"))["launches"]) == 1


# ---- What is refused, and leaves nothing --------------------------------------------------------------------------

REFUSED = {
    ("seed=0,1", "bath_size=3"): "did you mean batch_size",
    ("seed=0,1", "bath_size=3,4"): "did you mean batch_size",
    ("method=vea,ae",): "did you mean vae",
    ("seed=0,",): "cannot read seed=0,",
    ("seed=range(0,0)",): "the grid is empty: seed has no values",
    ("seed=range(0,3,0)",): "no list of values that ends",
    (
        "seed=range(0,1000000000)",
    ): "seed=range(0,1000000000) is no list of values that ends, or one of more than 1,000,000",
    ("seed=shuffle(range(0,1000000000))",): "more than 1,000,000",
    ("seed=range(0,1,1e-12)",): "more than 1,000,000",
    ("seed=range(0,1000)", "batch_size=range(1,1001)"): "1,000,000 jobs? if you mean it, say sweep.max_jobs=1000000",
    ("seed=0,1,2", "sweep.max_jobs=2"): "3 jobs? if you mean it, say sweep.max_jobs=3",
    ("seed=interval(0,1)",): "leaves values open",
    ("latent_dim=glob(*)",): "glob is for groups",
    ("epochs=1,2",): "epochs=1 and epochs=2 are one run",
    ("seed=0,1,0",): "seed=0,1,0 names seed=0 twice",
    ("seed=range(0,200000)",): "200,000 jobs? if you mean it",
    ("seed=0,1", "sweep.name=a,b"): "sweep.name says how to sweep, and takes one value, not sweep.name=a,b",
    ("seed=0,1", "dry_run=true,false"): "dry_run says how to sweep, and takes one value",
    ("sweep=beta,seeds",): "sweep=beta,seeds names several presets",
    ("seed=0,1", "hydra.run.dir=here"): "hydra.run.dir=here is for one run; -m takes hydra.sweep.dir=",
    ("method=byol", "latent_dim=4,8"): "latent_dim=4 and latent_dim=8 would train the same model: byol has no latent",
    (
        "method=aavae,moco",
        "latent_dim=4,8",
        "seed=0,1",
    ): "method=moco latent_dim=4 seed=0 and method=moco latent_dim=8 seed=0 would train the same model",
    ("probe=[knn],[linear_cached]", "seed=0"): "probe=[knn] and probe=[linear_cached] are one run",
    ("batch_size=32,9999", "seed=0,1"): "2 of 4 jobs are impossible, and none was begun\n  batch_size=9999 seed=0: ",
    ("batch_size=9999",): "aavae-train: batch_size=9999 is larger",
    ("encoder=timm", "+encoder.kwargs.x=1,2"): "+encoder.kwargs.x=1: ",
    ("seed=0,1", "latent_dim=${nothing}"): "nothing",
    ("seed=0,1", "hydra.launcher.n_jobs=0"): "hydra.launcher.n_jobs must be 1 or more",
    ("seed=0,1", "hydra.launcher.n_jobs=-1"): "hydra.launcher.n_jobs must be 1 or more",
    ("seed=0,1", "hydra.launcher.n_jobs=x"): "hydra.launcher.n_jobs must be 1 or more",
    ("seed=0,1", "hydra/launcher=nothing"): "no option 'nothing'",
    ("seed=0,1", "hydra.sweep.dir=file/s"): "name another hydra.sweep.dir=",
    ("seed=0,1", "hydra.sweep.dir=file"): "name another hydra.sweep.dir=",
    ("--config-dir", "nowhere"): "there is no folder nowhere",
    ("--cfg", "job"): "--cfg shows the config of one job; leave out -m",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_bad_input_is_refused_before_anything_is_begun(sweep, arguments):
    Path("file").touch()
    began = time.monotonic()
    ended = sweep(*arguments) if arguments[0] != "--cfg" else sweep("seed=0", *arguments)
    assert ended.code == 2 and REFUSED[arguments] in ended.err, ended.err
    assert "Traceback" not in ended.err and time.monotonic() - began < 60
    assert [p.name for p in Path().iterdir()] == ["file"]


def test_a_long_list_of_impossible_jobs_is_cut(sweep):
    ended = sweep("batch_size=range(9001,9013)")
    assert ended.code == 2 and "12 of 12 jobs are impossible" in ended.err
    assert len(ended.err.splitlines()) == 12 and ended.err.endswith("and 2 more\n")


def test_a_disk_that_is_too_small_is_said_before_it_is_full(sweep, monkeypatch):
    monkeypatch.setattr(multirun.shutil, "disk_usage", lambda place: SimpleNamespace(free=2**20))
    ended = sweep("seed=0,1")
    assert ended.code == 2 and "0.0 GiB free" in ended.err and "make room" in ended.err
    assert not list(Path().iterdir())


def test_a_folder_in_which_a_sweep_runs_is_not_swept_twice(sweep):
    Path("multirun/s").mkdir(parents=True)
    with files.only_one(Path("multirun/s")):
        ended = sweep("seed=0,1", "sweep.name=s")
    assert ended.code == 2 and "another process is busy in" in ended.err and "hydra.sweep.dir=" in ended.err
    assert [p.name for p in Path("multirun/s").iterdir()] == [".lock"]


def test_a_preset_without_m_is_no_single_run(train):
    ended = train("trainer=debug", "sweep=seeds")
    assert ended.code == 2 and "sweep=seeds" in ended.err and "-m" in ended.err
    assert not list(Path().iterdir())
    assert train("trainer=debug", "sweep=none", "dry_run=true").code == 0


@pytest.mark.slow
def test_a_preset_may_be_overridden(sweep):
    ended = sweep("sweep=seeds", "seed=5,6", "dry_run=true")
    assert ended.code == 0 and "2 jobs" in ended.out and not list(Path().iterdir())
    assert "3 jobs" in sweep("sweep=seeds", "dry_run=true").out


def test_a_dry_run_says_what_a_sweep_takes_and_writes_nothing(sweep):
    ended = sweep("batch_size=16,32", "trainer.max_steps=null", "dry_run=true")
    assert ended.code == 0, ended.err
    assert "2 jobs" in ended.out and "steps       48 in all" in ended.out and "time        about" in ended.out
    assert "0.04 GiB of" in ended.out
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_help_is_help_for_a_sweep_too(sweep):
    ended = sweep("--help")
    assert ended.code == 0 and ended.out.startswith("Pretrain") and not list(Path().iterdir())


# ---- Parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected", "names"),
    [
        (["seed=0,1", "epochs=3"], [["seed=0", "epochs=3"], ["seed=1", "epochs=3"]], ["seed=0", "seed=1"]),
        (["seed=0,1", "seed=2"], [["seed=2"]], ["seed=2"]),
        (["probe=[knn],[a,b]"], [["probe=[knn]"], ["probe=[a,b]"]], ["probe=[knn]", "probe=[a,b]"]),
        (["data_dir='a, b','c'"], [["data_dir='a, b'"], ["data_dir='c'"]], ["data_dir='a, b'", "data_dir='c'"]),
        (["encoder=timm", "+encoder.kwargs.x=1,2"], [["encoder=timm", f"+encoder.kwargs.x={x}"] for x in (1, 2)], None),
        (["sweep=seeds", "seed=7,8"], [["seed=7", "sweep=seeds"], ["seed=8", "sweep=seeds"]], ["seed=7", "seed=8"]),
        (["seed=range(0,2)", "method=glob(va*)"], [[f"seed={s}", "method=vae"] for s in (0, 1)], None),
        (["epochs=3"], [["epochs=3"]], ["single"]),
    ],
)  # fmt: skip
def test_a_grid_has_the_jobs_that_hydra_makes_of_it(overrides, expected, names):
    grid = Grid(overrides, None, "config")
    assert grid.jobs() == expected and len(grid) == len(expected) and grid.complete
    if names:
        assert [grid.name(job) for job in grid.jobs()] == names


TEXTS = [
    "plain", "a b", "it's", 'say "no"', "a\\b", "ends\\", "\\\\", "\\'", "a\\\\'b", "x=[1,2] y={a:1}", "${seed}",
    "\\${seed}", "$x", "ünï", "", "null", "1e3", "a,b", "# no comment", "~/x", "(a|b)",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_quoted_is_read_back_as_it_is(text):
    found = build.compose([f"sweep.job={quoted(text)}"]).sweep.job
    assert found == text and isinstance(found, str)


def test_a_job_is_told_what_it_is(tmp_path):
    sweep = Multirun(SimpleNamespace(primary="config", module="aavae.train"), ["seed=0,1", "sweep.max_jobs=3"], None)
    sweep.folder = tmp_path / "it's a sweep"
    job = Job(1, ["seed=1", "sweep.max_jobs=3", "sweep=seeds", "probe=[knn]"], sweep.folder / "x=1", "seed=1 a='b'")
    python, m, module, *arguments = sweep._child(job)
    assert (python, m, module) == (sys.executable, "-m", "aavae.train")
    cfg = build.compose(arguments)
    assert (cfg.seed, cfg.sweep.name, cfg.sweep.job) == (1, "it's a sweep", "seed=1 a='b'")
    assert list(cfg.probe) == ["knn"]
    Train().register_resolvers(arguments)
    assert build.folder(arguments, "hydra.run.dir") == str(tmp_path / "it's a sweep" / "x=1")
    assert identity(build.plain(cfg)) == identity(build.plain(build.compose(["seed=1"])))


@pytest.mark.parametrize(
    ("gpus", "n_jobs", "device", "visible", "expected"),
    [
        (0, None, "auto", None, [None]),
        (0, 3, "auto", None, [None] * 3),
        (2, None, "auto", None, ["0", "1"]),
        (2, None, "cuda", "5,7", ["5", "7"]),
        (2, 3, "auto", None, ["0", "1", "0"]),
        (4, 2, "auto", None, ["0", "1"]),
        (2, None, "cpu", None, [None]),
        (2, None, "cuda:1", None, [None]),
        (2, None, "auto", "GPU-a,GPU-b", ["GPU-a", "GPU-b"]),
    ],
)
def test_gpus_are_handed_out_one_a_job_and_threads_divided(monkeypatch, gpus, n_jobs, device, visible, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(12), raising=False)
    sweep = Multirun(SimpleNamespace(primary="config"), [], None)
    sweep.gpus = gpus
    slots = sweep._slots(n_jobs, device)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in slots] == expected
    threads = None if len(expected) == 1 else str(12 // len(expected))
    assert {slot.get("OMP_NUM_THREADS") for slot in slots} == {threads}


def test_threads_that_were_chosen_are_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert Multirun(SimpleNamespace(primary="config"), [], None)._slots(2, "cpu") == [{}, {}]


def test_a_sweep_s_record_grows(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    first = [Job(i, [f"seed={i}"], folder / f"{i}", f"seed={i}") for i in (0, 1)]
    sweeps.record(folder, ["seed=0,1"], None, first)
    sweeps.record(folder, ["seed=0,1"], "/conf", first)
    elsewhere = Job(0, ["seed=2"], tmp_path / "other" / "2", "seed=2")
    sweeps.record(folder, ["seed=2"], None, [elsewhere])
    found = sweeps.read(folder)
    assert found["name"] == "s" and found["created"]
    assert [(launch["overrides"], launch["config_dir"]) for launch in found["launches"]] == [
        (["seed=0,1"], "/conf"), (["seed=2"], None),
    ]  # fmt: skip
    assert [job["folder"] for job in found["jobs"]] == ["0", "1", str(tmp_path / "other" / "2")]
    assert [(job["name"], job["overrides"]) for job in found["jobs"]] == [
        (f"seed={i}", [f"seed={i}"]) for i in range(3)
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"launches": 3, "jobs": []}', '{"launches": [], "jobs": [{}]}'])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / sweeps.SWEEP).write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json is damaged"):
        sweeps.read(tmp_path)


def test_done_is_what_was_trained_and_judged_as_asked(tmp_path):
    config = {
        "epochs": 2, "probe": {"knn": {"k": 5}}, "features": ["h"], "resume": "auto",
        "trainer": {"max_steps": None, "log_every": 4},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(build.to_yaml(config))
    (tmp_path / "results.json").write_text("[]")
    assert not is_done(tmp_path, config)
    status.write(tmp_path, "done", score=0.5)
    assert is_done(tmp_path, config)
    assert is_done(tmp_path, config | {"trainer": {"max_steps": None, "log_every": 9}})
    assert is_done(tmp_path, config | {"probe": {}})
    more = {"knn": {"k": 5}, "linear": {}}
    for other in (
        {"epochs": 3}, {"probe": more}, {"probe": {"knn": {"k": 6}}}, {"features": ["h", "mu"]}, {"resume": "never"},
        {"trainer": {"max_steps": 5}},
    ):  # fmt: skip
        assert not is_done(tmp_path, config | other), other
    for state in ("running", "failed", "interrupted", "pending"):
        status.write(tmp_path, state)
        assert not is_done(tmp_path, config)
    status.write(tmp_path, "done")
    for name, text in (
        ("config.yaml", "a: [1"), ("config.yaml", "- 1"), ("config.yaml", "epochs: ${nothing}"), ("config.yaml", ""),
        ("config.yaml", BOMB),
        ("status.json", "{"),
    ):  # fmt: skip
        kept = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        assert not is_done(tmp_path, config), (name, text)
        (tmp_path / name).write_text(kept)
    assert is_done(tmp_path, config)
    (tmp_path / "results.json").unlink()
    assert not is_done(tmp_path, config)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("method=aavae",), True), (("method=ae",), True), (("method=simclr",), True), (("method=byol",), False),
        (("method=dino",), False), (("method=mae", "encoder=vit_tiny"), False),
        (("method=byol", "encoder.output_dim=${latent_dim}"), True),
    ],
)  # fmt: skip
def test_what_has_a_latent(words, expected):
    assert build.has_latent(build.compose(["dataset=synthetic", *words])) is expected
