"""What is printed, on consoles that know few letters, and where nobody reads or nothing can be written."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aavae.runtime import exits
from aavae.runtime.output import LenientStream, lenient

TINY = ("trainer=debug", "trainer.max_steps=2", "hydra.run.dir=run", "probe=knn", "features=[h,mu]")
FULL = "cannot write what it prints (No space left on device)\n"


def ascii_console() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)


def test_a_console_of_ascii_gets_what_it_can_read():
    stream = ascii_console()
    LenientStream(stream).write("32², 3×3, 1 ± 2, μ, –, ü, 猫\n")
    assert stream.buffer.getvalue() == b"32^2, 3x3, 1 +/- 2, mu, -, u, ?\n"


def test_names_that_are_no_text_are_printed_as_they_are():
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    LenientStream(stream).write(os.fsdecode(b"caf\xe9 \xc3\xa9"))
    assert stream.buffer.getvalue() == b"caf\xe9 \xc3\xa9"


def test_training_evaluation_and_report_go_on_where_letters_are_missing(monkeypatch, tmp_path):
    from aavae.report import main as report
    from aavae.train import main as train

    monkeypatch.chdir(tmp_path)
    for main, arguments in ((train, TINY), (report, ("run",))):
        stream = ascii_console()
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        printed = stream.buffer.getvalue().decode("ascii")
        assert "kNN" in printed and "?" not in printed
    assert "mu" in printed


class Refuses(io.StringIO):
    """A stream that takes `room` characters."""

    def __init__(self, number: int, room: int = 0):
        super().__init__()
        self.number, self.room = number, room

    def write(self, text: str) -> int:
        self.room -= len(text)
        if self.room < 0:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_training_goes_on_when_nobody_reads(monkeypatch, capsys, tmp_path, number):
    from aavae.train import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", Refuses(number, room=40))
    monkeypatch.setattr(sys, "argv", ["aavae-train", *TINY])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0 and Path("run/results.json").exists()
    said = capsys.readouterr().err
    assert said == (
        "" if number != errno.ENOSPC else "aavae-train: cannot write what it prints (No space left on device)\n"
    )


@pytest.mark.parametrize("number, code", [(errno.EPIPE, 0), (errno.ENOSPC, 2)])
def test_a_command_whose_output_is_lost_says_so_unless_its_reader_left(monkeypatch, capsys, number, code):
    monkeypatch.setattr(sys, "stdout", Refuses(number))
    assert exits.run("name", lambda: print("result")) == code
    assert capsys.readouterr().err == (
        "" if code == 0 else "name: cannot write what it prints (No space left on device)\n"
    )


def test_what_was_closed_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with lenient() as out:
        print("nobody sees this")
    assert out.lost is None and sys.stdout is None


READERS = {"head": "| head -1 >/dev/null; exit ${PIPESTATUS[0]}", "full": "> /dev/full", "closed": ">&- 2>&-"}


@pytest.mark.parametrize("reader, code", [("head", 0), ("full", 2), ("closed", 0)])
def test_the_shell_sees_the_same(reader, code, tmp_path):
    command = f"{sys.executable} -c 'from aavae.report import main; main()' --help {READERS[reader]}"
    ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == code and ended.stderr.count("\n") == (code == 2)


@pytest.mark.slow
def test_libraries_do_not_complain_of_a_home_that_takes_no_files(tmp_path):
    command = [sys.executable, "-m", "aavae.train", *TINY, "logger=wandb"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")}
    environment |= {"HOME": "/proc/nowhere", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stderr == ""
    assert "INFO" not in ended.stdout and "matplotlib" not in ended.stdout.lower()
    assert list((tmp_path / "run" / "wandb").iterdir()) and (tmp_path / "run" / "reconstructions.png").exists()
