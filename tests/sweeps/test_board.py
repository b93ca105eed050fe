"""The live table of a sweep, and the lines where there is no terminal."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from aavae.runs import status
from aavae.runs.sweep import Job
from aavae.sweeps import board
from aavae.sweeps.board import Board


def jobs_of(folder: Path, count: int, name: str = "batch_size={} latent_dim=64 seed=0") -> list[Job]:
    jobs = [Job(i, [], folder / str(i), name.format(i)) for i in range(count)]
    for job in jobs:
        job.folder.mkdir()
    return jobs


def drawn(b: Board, width: int = 100, height: int = 40) -> list[list[str]]:
    """The cells of the table as it is drawn, header first."""
    b.console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    b.console.print(b.table())
    lines = b.console.file.getvalue().replace("┃", "│").splitlines()
    assert max(map(len, lines)) <= width
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line]


def test_the_table_says_what_each_job_says_of_itself(tmp_path):
    jobs = jobs_of(tmp_path, 6)
    running = {"epoch": 12.34, "epochs": 3200, "images_per_second": 1234.5, "seconds_left": 7300, "score": 0.5}
    status.write(jobs[1].folder, "running", stage="training", **running)
    status.write(jobs[2].folder, "pending")  # begun, and not yet heard of
    status.write(jobs[4].folder, "done", score=0.5)  # its process has not ended yet
    status.write(jobs[3].folder, "failed", "the loss became nan", epoch=1.0, epochs=3200, images_per_second=9.0)
    (jobs[5].folder / status.STATUS).write_text("{")
    b = Board(jobs, {0: "done"})
    status.write(jobs[0].folder, "done", score=0.8715, epoch=3200, epochs=3200, seconds=3700)
    b.update({1: "running", 2: "running", 3: "failed", 4: "running", 5: "running"})
    head, *rows = drawn(b)
    assert head == ["job", "", "state", "epoch", "images/s", "score", "left"]
    name = "batch_size={} latent_dim=64 seed=0"
    assert rows == [
        ["0", name.format(0), "done", "3200.0/3200", "", "0.872", ""],
        ["1", name.format(1), "training", "12.3/3200", "1,234", "0.500", "2h 01m"],
        ["2", name.format(2), "starting", "", "", "", ""],
        ["3", name.format(3), "failed", "1.0/3200", "", "", ""],
        ["4", name.format(4), "ending", "", "", "0.500", ""],
        ["5", name.format(5), "starting", "", "", "", ""],
    ]


def test_where_not_all_jobs_fit_those_that_need_looking_at_are_shown(tmp_path):
    jobs = jobs_of(tmp_path, 60)
    b = Board(jobs, {i: "done" for i in range(20)})
    b.update({17: "failed", 45: "failed", 30: "running", 31: "running"})
    _, *rows = drawn(b, height=16)
    assert len(rows) == 10
    assert {(int(row[0]), row[2]) for row in rows} >= {
        (17, "failed"),
        (45, "failed"),
        (30, "starting"),
        (31, "starting"),
    }
    assert [int(row[0]) for row in rows] == sorted(int(row[0]) for row in rows)
    assert "50 more are not shown" in b.console.file.getvalue()
    assert "2 failed, 2 running, 37 pending, 19 done" in b.console.file.getvalue()


def test_on_a_narrow_terminal_names_are_cut_and_numbers_are_not(tmp_path):
    jobs = jobs_of(tmp_path, 1, "batch_size=1024 latent_dim=64 decoder=resnet50 seed=0")
    facts = {"epoch": 1200.5, "epochs": 3200, "images_per_second": 12345.0, "seconds_left": 50_000, "score": 0.87}
    status.write(jobs[0].folder, "running", stage="training", **facts)
    b = Board(jobs, {})
    b.update({0: "running"})
    _, row = drawn(b, width=80)
    assert row[0] == "0" and row[1].startswith("batch_size=1024") and row[1].endswith("…")
    assert row[2:] == ["training", "1200.5/3200", "12,345", "0.870", "13h 53m"]
    assert len(drawn(b, width=40)) == 2  # a row is a line, however little there is of it


@pytest.mark.parametrize("name", ["probe=[knn]", "dataset.path=[/red]", "x='[bold]'"])
def test_names_are_shown_as_they_are(tmp_path, name):
    jobs = jobs_of(tmp_path, 1, name.replace("{", "{{"))
    assert drawn(Board(jobs, {}))[1][1] == name


def test_without_a_terminal_every_change_is_a_line(tmp_path, capsys):
    jobs = jobs_of(tmp_path, 3, "x=[{}]")
    with Board(jobs, {2: "done"}) as b:
        b.update({0: "running"})
        b.update({0: "running"})
        status.write(jobs[0].folder, "failed", "killed by SIGKILL, as when memory runs out")
        status.write(jobs[1].folder, "done", score=0.25, seconds=65)
        b.update({0: "failed", 1: "done"})
        b.update({0: "failed", 1: "done"})
    assert capsys.readouterr().out.splitlines() == [
        "job 0 (x=[0]) running",
        "job 0 (x=[0]) failed: killed by SIGKILL, as when memory runs out",
        "job 1 (x=[1]) done, score 0.2500, 1m 05s",
    ]


def test_without_a_terminal_one_hears_now_and_then(tmp_path, capsys, monkeypatch):
    jobs = jobs_of(tmp_path, 2)
    status.write(jobs[0].folder, "running", epoch=3.0, epochs=10)
    clock = [0.0]
    monkeypatch.setattr(board.time, "monotonic", lambda: clock[0])
    with Board(jobs, {}) as b:
        b.update({0: "running"})
        for _ in range(4):
            clock[0] += board.EVERY / 2 + 1
            b.update({0: "running"})
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines == ["1 running, 1 pending; batch_size=0 latent_dim=64 seed=0 3.0/10"] * 2


def test_a_terminal_gets_a_table_that_is_gone_at_the_end(tmp_path, monkeypatch):
    jobs = jobs_of(tmp_path, 2)
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(board, "console", lambda: Console(file=screen, force_terminal=True, width=80, height=20))
    with Board(jobs, {}) as b:
        b.update({0: "running"})
        first = screen.getvalue()
        b.update({0: "running"})
        assert screen.getvalue() == first  # at most once a second, if nothing has changed
        b.update({0: "failed"})
        assert len(screen.getvalue()) > len(first)
    assert "starting" in first and "\x1b[2K" in screen.getvalue()[len(first) :]


UNSEEN = """
import os, sys, time
from pathlib import Path
from aavae.sweeps.board import Board
from aavae.sweeps.pool import Pool
from aavae.runs.sweep import Job
here = Path(sys.argv[1])
jobs = [Job(i, [], here / str(i), "x" * 70_000) for i in range(3)]
with Board(jobs, {}) as board:
    outcomes = Pool(lambda job: [sys.executable, "-c", f"open({str(here / str(job.number))!r} + '.ran', 'w')"], [{}],
                    board.update).run(jobs)
print("the end", flush=True)
"""


def test_jobs_go_on_when_nobody_looks_any_more(tmp_path):
    reads, writes = os.pipe()
    os.close(reads)
    ended = subprocess.run(
        [sys.executable, "-c", UNSEEN, str(tmp_path)], stdout=writes, stderr=subprocess.PIPE, text=True
    )
    os.close(writes)
    assert sorted(p.name for p in tmp_path.glob("*.ran")) == ["0.ran", "1.ran", "2.ran"]
    assert (ended.returncode, ended.stderr) == (0, "")
