"""The zoo of a terminal: its width, its letters, its colours, a pipe, a notebook; the commands as they are typed."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from run_folders import a_run, a_sweep, record

from aavae.loggers import screen
from aavae.loggers.screen import Reporter, results_tables
from aavae.runs import status
from aavae.runs.sweep import Job
from aavae.runtime.words import folded, wrapped
from aavae.sweeps.board import Board

WIDTHS = (80, 100, 200)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
DEBUG = ("trainer=debug", "trainer.max_steps=2", "hydra.run.dir=run", "probe=knn", "features=[h,mu]")
REASON = "UserError: the loss became nan in step 1,234 of 20,000; a smaller optimizer.lr= or trainer.clip=1 may help"
TYPED = "aavae-train experiment=digits 'loss.beta=0.1' latent_dim=16 optimizer.lr=1e-3 hydra.run.dir=outputs/a"


class Terminal(io.TextIOWrapper):
    """A stream that says to be a terminal, or not, with the letters of `encoding`."""

    def __init__(self, encoding: str = "utf-8", terminal: bool = True):
        super().__init__(io.BytesIO(), encoding, write_through=True)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    @property
    def text(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """`typed(module, *arguments, width=…, encoding=…, terminal=…)`: what the command writes to stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"TERM": "xterm-256color", "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)

    def run(module: str, *arguments: str, width: int = 80, encoding: str = "utf-8", terminal: bool = True) -> str:
        main = __import__(f"aavae.{module}", fromlist=["main"]).main
        monkeypatch.delenv("COLUMNS", raising=False)
        if terminal:
            monkeypatch.setenv("COLUMNS", str(width))
        stream = Terminal(encoding, terminal)
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "argv", [f"aavae-{module}", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, 1, 2)
        return stream.text

    return run


@pytest.fixture
def folders(tmp_path) -> Path:
    """A run, and a sweep whose table has many columns and whose last job has failed for a long reason."""
    several = [
        record(probe=p, value=0.5 + i / 10) for i, p in enumerate(("few_label_1", "few_label_5", "knn", "linear"))
    ]
    several += [
        record(probe="linear_cached", value=0.9),
        record(probe="few_label_1", metric="accuracy_sd", value=0.021),
    ]
    known = {"score": 0.5, "seconds": 3700.0, "flop": 1e15, "command": TYPED}
    a_run(tmp_path / "outputs/a", *several, *(r | {"feature": "mu"} for r in several), said=known)
    jobs = []
    for dim in (64, 128):
        for seed in (0, 1, 2):
            said = known | ({"reason": REASON} if (dim, seed) == (128, 2) else {})
            changed = [r | {"value": r["value"] + seed / 100} for r in several]
            state = "failed" if "reason" in said else "done"
            a_run(tmp_path / f"multirun/s/{len(jobs)}", *changed, state=state, said=said, latent_dim=dim, seed=seed)
            jobs.append(f"latent_dim={dim} seed={seed}")
    a_sweep(tmp_path / "multirun/s", *jobs)
    return tmp_path


def lines(text: str) -> list[str]:
    return ESCAPE.sub("", text).replace("\r", "\n").splitlines()


def fits(text: str, width: int) -> bool:
    return max(map(cell_len, lines(text))) <= width


# ---- Widths -------------------------------------------------------------------------------------------------------


COMMANDS = {
    "report": ("report", "multirun/s"),
    "report on a run": ("report", "outputs/a"),
    "ls": ("manage", "ls"),
    "show": ("manage", "show", "outputs/a"),
    "diff": ("manage", "diff", "multirun/s/0", "multirun/s/3"),
    "an error": ("manage", "show", "outputs/there_is_no_such_run_in_this_folder", "and", "these", "are", "too", "many"),
    "convert --help": ("convert", "--help"),
    "embed --help": ("embed", "--help"),
    "runs --help": ("manage", "--help"),
}


def words(text: str) -> list[str]:
    """Words without what is drawn: lines of tables, and what continues a command."""
    return [
        w for w in re.split(r"[\s│┃|]+", ESCAPE.sub("", text)) if w and not re.fullmatch(r"[─━┏┓┡┩└┘┳╇┴╰╯+\\-]+", w)
    ]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_lines_end_at_the_edge_and_words_stay_whole(typed, folders, command, width):
    text = typed(*command, width=width)
    assert fits(text, width), max(lines(text), key=len)
    # Which leaves columns out and says so, argparse's own words, and settings longer than a column.
    if command[1:] not in (("ls",), ("--help",), ("show", "outputs/a")):
        whole = typed(*command, terminal=False)
        assert set(words(text)) >= set(words(whole)) - {"…"}


def test_a_report_on_a_narrow_terminal_is_several_tables_with_whole_cells(typed, folders):
    wide, narrow = typed("report", "multirun/s", width=200), typed("report", "multirun/s", width=80)
    assert ESCAPE.sub("", wide).count("latent_dim") < ESCAPE.sub("", narrow).count("latent_dim")
    for cell in ("51.0 ± 1.0", "61.0 ± 1.0", "81.0 ± 1.0", "91.0 ± 1.0", "1h 01m"):
        assert cell in wide and cell in narrow
    assert "2 done, 1 failed" in wide and "UserError: the loss became nan" in " ".join(narrow.split())


def test_a_command_that_is_too_long_can_be_copied_all_the_same(typed, folders, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = folded(TYPED, 12)
    assert len(text.splitlines()) > 1 and max(map(len, text.splitlines())) <= 60
    heard = subprocess.run(["bash", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True).stdout
    assert heard.split() == TYPED.replace("'", "").split()
    assert folded("short", 12) == "short"
    assert " \\\n" in typed("manage", "show", "outputs/a", width=80)
    assert TYPED in typed("manage", "show", "outputs/a", terminal=False)


# ---- Colours and letters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [COMMANDS[c] for c in ("report", "ls", "show", "diff")], ids=lambda c: c[1])
def test_no_escape_codes_where_nobody_wants_them(typed, folders, monkeypatch, command):
    assert "\x1b" in typed(*command)
    assert "\x1b" not in typed(*command, terminal=False)
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in typed(*command)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in typed(*command)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("command", [COMMANDS[c] for c in ("report", "ls", "show", "diff")], ids=lambda c: c[1])
def test_tables_are_straight_where_letters_are_missing(typed, folders, command, terminal):
    text = typed(*command, encoding="ascii", terminal=terminal)
    assert "?" not in text and (not terminal or fits(text, 80))
    boxed = [line for line in lines(text) if line.startswith("|")]
    edges = [[m.start() for m in re.finditer(r"\|", line)] for line in boxed if "-+-" not in line]
    tables = {tuple(edge) for edge in edges}
    assert all(
        edge[-1] == len(line) - 1 for edge, line in zip(edges, [b for b in boxed if "-+-" not in b], strict=True)
    )
    assert len(tables) <= len([line for line in lines(text) if line.startswith("+-")]) / 2  # one layout a table
    if command[0] == "report":
        assert "+/-" in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_run_is_told_in_plain_lines_where_nothing_can_move(typed, monkeypatch, encoding):
    monkeypatch.setenv("NO_COLOR", "1")
    text = typed("train", *DEBUG, encoding=encoding)
    assert "\x1b" not in text and "\r" not in text and "?" not in text and fits(text, 80)
    assert "step 2/2" in text and ("μ" if encoding == "utf-8" else "mu") in text
    assert ("16²" in text) is (encoding != "ascii")


def test_a_run_moves_on_a_terminal_and_leaves_whole_lines(typed):
    text = typed("train", *DEBUG)
    assert "\x1b[2K" in text or "\x1b[1A" in text
    assert fits(text, 80) and "epoch" in text and "images/s" in text


@pytest.mark.parametrize(
    ("name", "value", "terminal"), [("TERM", "dumb", True), ("NO_COLOR", "1", True), ("FORCE_COLOR", "1", False)]
)
def test_nothing_moves_on_a_dumb_terminal_without_colours_or_in_a_pipe(monkeypatch, name, value, terminal):
    for variable in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert screen.moves(screen.console())
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", out := Terminal(terminal=terminal))
    reporter = Reporter(seconds=0.0)
    assert not screen.moves(reporter.console)
    assert list(reporter.track(range(3), 3, "reading")) == [0, 1, 2]
    assert out.text.splitlines()[-1].startswith("reading  3/3")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_board_of_a_sweep_cuts_names_in_the_letters_there_are(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(sys, "stdout", out := Terminal(encoding))
    job = Job(0, [], tmp_path / "0", "encoder=resnet50 decoder=resnet50 latent_dim=128 batch_size=1024 seed=0")
    job.folder.mkdir()
    status.write(job.folder, "running", epoch=1.0, epochs=3200, images_per_second=12345.0, seconds_left=50_000)
    board = Board([job], {})
    board.states[0] = "running"
    Console(file=out, width=80, color_system=None).print(board.table())
    assert fits(out.text, 80) and "13h 53m" in out.text and "encoder=resnet50" in out.text
    assert ("…" in out.text) is (encoding == "utf-8")


# ---- A notebook ---------------------------------------------------------------------------------------------------


def test_a_notebook_gets_plain_text(monkeypatch, capsys):
    """As rich sees a kernel: by the class of `get_ipython()`."""
    kernel = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(
        __builtins__ if isinstance(__builtins__, dict) else vars(__builtins__), "get_ipython", lambda: kernel
    )
    monkeypatch.setattr("rich.console.get_ipython", lambda: kernel, raising=False)
    assert Console().is_jupyter
    reporter = Reporter(seconds=0.0)
    reporter.show(results_tables([record(value=0.5), record(value=0.25, feature="mu")]))
    reporter.start(0, 2)
    reporter.update(2, "1/1", {"train/loss": 1.0}, 10.0)
    reporter.stop()
    out = capsys.readouterr().out
    assert "│ kNN   │ 50.0 │ 25.0 │" in out and "step 2/2" in out and "\x1b" not in out and "<pre" not in out


# ---- The real thing -----------------------------------------------------------------------------------------------

# A pseudo-terminal of so many columns, for the command given; what it has written goes to stdout.
ON_A_TERMINAL = """
import fcntl, os, pty, struct, sys, termios
child, end = pty.fork()
if not child:
    os.read(0, 1)  # until it has its size
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, int(sys.argv[1]), 0, 0))
os.write(end, b"\\n")
try:
    while written := os.read(end, 65536):
        sys.stdout.buffer.write(written)
except OSError:  # the other end is closed
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def on_a_terminal(width: int, *command: str, **environment: str) -> str:
    kept = {
        k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTHONUTF8")
    }
    kept |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | environment
    ended = subprocess.run(
        [sys.executable, "-c", ON_A_TERMINAL, str(width), "-m", *command], env=kept, capture_output=True
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout.decode()


def test_a_real_terminal_has_its_own_width(folders, monkeypatch):
    monkeypatch.chdir(folders)
    for width in (80, 100):
        text = on_a_terminal(width, "aavae.manage", "show", "outputs/a")
        assert fits(text, width) and "1-NN, 5 labels" in text and "\x1b" in text


@pytest.mark.slow
def test_a_real_terminal_of_a_locale_without_letters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "NO_COLOR": "1", "WANDB_MODE": "offline"}
    text = on_a_terminal(80, "aavae.train", *DEBUG, **bare)
    assert text.isascii() and "\x1b" not in text and fits(text, 80) and "16^2" in text
    assert json.loads(Path("run/status.json").read_text())["state"] == "done"
    assert on_a_terminal(80, "aavae.report", "run", **bare).isascii()
    assert on_a_terminal(80, "aavae.train", "--help", **bare).isascii()


def test_wrapped_lines_are_those_of_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, wrapped("label       " + "word " * 30).splitlines())) <= 40
