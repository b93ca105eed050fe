"""A disk that becomes full, a small one of its own: one sentence, nothing half-written, and the run goes on later."""

import errno
import json
import subprocess
from pathlib import Path

import faults
import pytest
import wandb_reader
from disturbed import TINY, as_if_nothing_had_happened, nothing_half_written

from aavae.loggers.metrics_file import MetricsFile
from aavae.training.trainer import Trainer

pytestmark = pytest.mark.faults
ROOMS = (
    (0, 40, 1000) if faults.SHORT else (0, 4, 8, 12, 16, 20, 24, 40, 100, 400, 640, 700, 760, 1000, 1300, 1400, 1500)
)


class Disk:
    """A disk of its own at `folder`, of so many kB."""

    def __init__(self, folder: Path, size: int):
        self.folder = folder
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"no disk can be mounted here ({mounted.stderr.strip()})")
        self.ballast = folder / "ballast"

    def fill(self, but: int = 0) -> None:
        """Leave so many kB."""
        self.ballast.unlink(missing_ok=True)
        try:
            with open(self.ballast, "wb", buffering=0) as ballast:
                while ballast.write(bytes(4096)) == 4096:
                    pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        with open(self.ballast, "r+b") as ballast:
            ballast.truncate(max(0, self.ballast.stat().st_size - 1024 * but))

    def remove(self) -> None:
        """Without what is on it."""
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    """`disk(folder, kB)` mounts one, which is removed after the test."""
    mounted: list[Disk] = []

    def mount(folder: str, size: int) -> Disk:
        mounted.append(Disk(tmp_path / folder, size))
        return mounted[-1]

    yield mount
    for one in mounted:
        one.remove()


def full(ended) -> str:
    """The sentence of a command that found a disk full."""
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1 and "No space left on device" in ended.err, ended.err
    return ended.err


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1 if faults.SHORT else 4))
def test_with_any_room_that_is_left_a_run_is_whole_or_one_sentence(disk, train, injected, part):
    assert train(*TINY, "hydra.run.dir=whole").code == 0
    small = disk("disk", 8192)
    for room in ROOMS[part :: 1 if faults.SHORT else 4]:
        run = small.folder / str(room)
        small.fill(but=room)
        ended = train(*TINY, f"hydra.run.dir={run}")
        assert ended.code == 0 or full(ended)
        injected["stopped, and went on" if ended.code else "had room enough"] += 1
        assert not list(run.glob(".*.tmp"))
        nothing_half_written(run)
        small.ballast.unlink()
        ended = train(*TINY, f"hydra.run.dir={run}")
        assert ended.code == 0, ended.err
        as_if_nothing_had_happened(run, Path("whole"))


@pytest.mark.slow
def test_a_disk_that_becomes_full_in_a_save_keeps_the_checkpoint_before(disk, train, monkeypatch, injected):
    assert train(*TINY, "hydra.run.dir=whole").code == 0
    small, step = disk("disk", 8192), Trainer.train_step

    def fills(self, *args, **kwargs):
        if self.step == 3:
            small.fill(but=300)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", fills)
        ended = train(*TINY, "hydra.run.dir=disk/run")
    assert "disk/run/last.pt" in full(ended)
    said = json.loads(Path("disk/run/status.json").read_text())
    assert (said["state"], said["saved"]) == ("failed", 2) and "No space left" in said["reason"]
    nothing_half_written(Path("disk/run"))
    small.ballast.unlink()
    ended = train(*TINY, "hydra.run.dir=disk/run")
    assert ended.code == 0 and "from step 2" in ended.out
    as_if_nothing_had_happened(Path("disk/run"), Path("whole"))
    injected["stopped, and went on"] += 1


def test_a_disk_that_is_full_while_it_logs_is_said_and_the_half_line_is_dropped(disk, train, monkeypatch, injected):
    words = (*TINY, "epochs=1", "trainer.log_every=1", "trainer.save_minutes=60")
    small, log, left = disk("disk", 8192), MetricsFile.log, [True]

    def fills(self, *args):
        if self.path.stat().st_size and left and left.pop():
            small.fill()
            with open(self.path, "ab") as file:  # lines of other runs, until one would not fit into the page
                file.write(b"\n" * (4096 - file.tell() - 20))
        log(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "log", fills)
        ended = train(*words, "hydra.run.dir=disk/run")
    assert "disk/run/metrics.jsonl" in full(ended)  # not that status.json cannot be written, either
    small.ballast.unlink()
    assert Path("disk/run/metrics.jsonl").stat().st_size == 4096
    ended = train(*words, "hydra.run.dir=disk/run")
    assert ended.code == 0, ended.err
    assert [json.loads(line)["step"] for line in Path("disk/run/metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
    ]
    injected["stopped, and went on"] += 1


@pytest.mark.slow
@pytest.mark.parametrize("at", [3] if faults.SHORT else [0, 3])
@pytest.mark.parametrize("room", [0] if faults.SHORT else [0, 900])
def test_the_full_folder_of_weights_and_biases_is_said_once_and_the_run_goes_on(
    disk, train, monkeypatch, injected, room, at
):
    small, step = disk("run/wandb", 4096), Trainer.train_step

    def fills(self, *args, **kwargs):
        if self.step == at:
            small.fill(but=room)
        return step(self, *args, **kwargs)

    if at == 0:
        small.fill(but=room)
    monkeypatch.setattr(Trainer, "train_step", fills)
    ended = train(*TINY, "logger=wandb")
    assert ended.code == 0, ended.err
    assert ended.err.count("\n") == 1 and "the logger wandb " in ended.err, ended.err
    assert "run/wandb is full" in ended.err and "the run continues without it" in ended.err
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 4
    injected["the run went on without W&B"] += 1


def test_what_weights_and_biases_has_taken_before_its_folder_is_full_is_whole(
    disk, tmp_path, monkeypatch, capfd, injected
):
    import wandb

    from aavae.loggers import Beginning, Loggers
    from aavae.loggers.wandb import WandB

    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    small = disk("wandb", 4096)
    log = Loggers({"wandb": WandB(system_metrics=False)})
    log.start(Beginning(tmp_path))
    for step in range(100):
        log.log({"loss": float(step)}, step, step / 10)
    small.fill(but=900)
    for step in range(100, 200):
        log.log({"loss": float(step)}, step, step / 10)
    log.close()
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "wandb is full" in said
    assert [row["loss"] for row in wandb_reader.history(tmp_path)] == list(range(100))
    injected["the run went on without W&B"] += 1
