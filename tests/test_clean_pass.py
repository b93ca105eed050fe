"""The measurement of the clean pass: two runs that share the time, and a table of what they reached."""

import json
import sys

import pytest

from aavae.errors import UserError
from benchmarks import clean_pass

TINY = ["dataset=synthetic", "encoder=resnet_tiny", "decoder=resnet_tiny", "batch_size=64", "latent_dim=8"]
TINY += ["trainer.save_minutes=0", "trainer.recalibration_images=64", "probe.linear_cached.steps=2"]


@pytest.fixture
def in_this_process(train, monkeypatch):
    """Its runs, made here: importing torch anew would take most of their time."""
    typed = []

    def run(command: list[str], seconds: float) -> None:
        assert command[:3] == [sys.executable, "-m", "aavae.train"] and seconds > 0
        typed.append(command)
        assert train(*command[3:]).code == 0

    monkeypatch.setattr(clean_pass, "train", run)
    return typed


@pytest.mark.slow
def test_both_runs_are_judged_on_the_way_and_at_the_end(in_this_process, tmp_path, capsys):
    out = tmp_path / "out"
    assert clean_pass.main([*TINY, "--epochs", "2", "--every", "1", "--minutes", "1", "--out", str(out)]) == 0
    assert [command[3] for command in in_this_process] == [f"trainer.clean_pass={s}" for s in clean_pass.SETTINGS]
    text = (out / "table.md").read_text()
    assert text in capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert [row[0].strip("-:") for row in rows] == ["epoch", "", "1", "2"]
    assert all(0 <= float(cell) <= 100 for row in rows[2:] for cell in row[1:])
    for column, (probe, setting) in enumerate(
        [(p, s) for p in clean_pass.PROBES for s in clean_pass.SETTINGS], start=1
    ):
        records = json.loads((out / setting / "results.json").read_text())
        (value,) = (r["value"] for r in records if (r["probe"], r["split"]) == (probe, "test"))
        assert rows[-1][column] == f"{100 * value:.1f}"
        config = (out / setting / "config.yaml").read_text()
        assert f"clean_pass: '{setting}'" in config or f"clean_pass: {setting}" in config


def test_the_run_that_is_behind_comes_first(tmp_path, monkeypatch):
    typed = []
    monkeypatch.setattr(clean_pass, "train", lambda command, seconds: typed.append((command[3], seconds)))
    monkeypatch.setattr(clean_pass, "state", lambda folder: {"epoch": float(folder.name == "every_step")})
    monkeypatch.setattr(clean_pass, "table", lambda folders: "")
    clean_pass.main(["--minutes", "10", "--out", str(tmp_path / "out")])
    assert typed == [
        ("trainer.clean_pass=off", pytest.approx(300, abs=10)),
        ("trainer.clean_pass=every_step", pytest.approx(600, abs=10)),  # all that is left, and here none was used
    ]


def test_a_wrong_word_is_refused_before_anything_is_begun(tmp_path, capsys):
    assert clean_pass.main(["bath_size=64", "--out", str(tmp_path / "out")]) == 2
    assert "did you mean batch_size?" in capsys.readouterr().err and not (tmp_path / "out").exists()


STOPS_WHEN_ASKED = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print(1); time.sleep(60)"


@pytest.mark.parametrize(
    ("program", "seconds", "refused"),
    [(STOPS_WHEN_ASKED, 1.0, False), ("", 60, False), ("raise SystemExit(2)", 60, True)],
)
def test_a_run_is_stopped_when_its_time_is_up_and_a_failure_is_said(program, seconds, refused):
    typed = [sys.executable, "-c", program]
    if refused:
        with pytest.raises(UserError, match="a run ended with exit code 2"):
            clean_pass.train(typed, seconds)
    else:
        clean_pass.train(typed, seconds)
