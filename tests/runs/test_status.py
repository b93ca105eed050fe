"""`status.json`: what a run says of itself, and how silence is read."""

import json
import os
import socket
import threading
from datetime import datetime, timedelta

import pytest

from aavae.errors import UserError
from aavae.runs import status
from aavae.runtime import files


def ago(seconds: float) -> str:
    return (datetime.now().astimezone() - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def put(folder, **said) -> None:
    (folder / status.STATUS).write_text(json.dumps({"updated": status.now()} | said))


def test_nothing_is_known_of_a_run_that_never_spoke(tmp_path):
    assert status.read(tmp_path) is None
    assert status.read(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "3", '"done"', "{}", '{"state": "finished", "updated": "2026-01-01T00:00:00+00:00"}',
        '{"state": "done", "updated": "noon"}', '{"state": ["done"]}', b"\xff\xfe\x00",
    ],
)  # fmt: skip
def test_a_damaged_status_is_named(tmp_path, text):
    (tmp_path / status.STATUS).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"status\.json is damaged"):
        status.read(tmp_path)


@pytest.mark.parametrize("key", ["step", "epoch", "score", "seconds", "saved", "images_per_second"])
def test_a_number_that_is_none_is_damage(tmp_path, key):
    put(tmp_path, state="done", **{key: "many"})
    with pytest.raises(UserError, match=f"damaged.*{key}"):
        status.read(tmp_path)
    put(tmp_path, state="done", **{key: None})
    assert status.read(tmp_path)[key] is None


def test_a_status_that_is_a_folder_is_named(tmp_path):
    (tmp_path / status.STATUS).mkdir()
    with pytest.raises(UserError, match="damaged"):
        status.read(tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        status.write(tmp_path, "done")


@pytest.mark.parametrize(
    ("state", "silent", "found"),
    [
        ("running", 0, "running"), ("running", status.PATIENCE - 5, "running"),
        ("running", status.PATIENCE + 5, "dead"),
        ("done", 1e6, "done"), ("pending", 1e6, "pending"), ("interrupted", 1e6, "interrupted"),
    ],
)  # fmt: skip
def test_only_a_running_job_dies_of_silence(tmp_path, state, silent, found):
    put(tmp_path, state=state, updated=ago(silent))
    assert status.state_of(status.read(tmp_path)) == found


def test_silence_is_counted_across_time_zones(tmp_path):
    for updated, found in (("2000-01-01T00:00:00", "dead"), ("2000-01-01T00:00:00-12:00", "dead")):
        put(tmp_path, state="running", updated=updated)
        assert status.state_of(status.read(tmp_path)) == found
    put(tmp_path, state="running", updated=datetime.now().isoformat())  # a clock without a zone is this one
    assert status.state_of(status.read(tmp_path)) == "running"


def test_what_is_written_is_kept_until_it_is_replaced(tmp_path):
    status.write(tmp_path, "running", step=3, saved=2, command="aavae-train")
    status.write(tmp_path, "failed", "the loss became nan", step=4)
    said = status.read(tmp_path)
    assert said.pop("updated")
    assert said == {
        "state": "failed", "reason": "the loss became nan", "step": 4, "saved": 2, "command": "aavae-train",
    }  # fmt: skip
    status.write(tmp_path, "running")
    assert status.read(tmp_path)["reason"] is None  # of a state, not of a run


def test_damage_is_written_over(tmp_path):
    (tmp_path / status.STATUS).write_text("{")
    status.write(tmp_path, "pending", name="seed=0")
    assert status.read(tmp_path)["name"] == "seed=0"


def test_a_reader_never_sees_half_a_status(tmp_path):
    stop, states = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            states.append(status.read(tmp_path)["state"])

    status.write(tmp_path, "pending", filler="x" * 100_000)
    reader = threading.Thread(target=look)
    reader.start()
    try:
        for step in range(30):
            status.write(tmp_path, "running", step=step, filler="y" * (step % 2 * 100_000))
    finally:
        stop.set()
        reader.join()
    assert states and set(states) <= {"pending", "running"}
    assert [p.name for p in tmp_path.iterdir()] == [status.STATUS]  # no temporary file is left


def test_a_heart_says_who_runs_and_how_far_it_is(tmp_path):
    progress = {"step": 0}
    heart = status.Heart(tmp_path, lambda: progress, command="aavae-train seed=1")
    with heart.beating():
        first = status.read(tmp_path)
        progress = {"step": 7}
    assert first["state"] == "running" and first["ended"] is None and first["step"] == 0
    assert (first["pid"], first["host"]) == (os.getpid(), socket.gethostname())
    heart.say("done")
    last = status.read(tmp_path)
    assert (last["state"], last["step"], last["command"]) == ("done", 7, "aavae-train seed=1")
    assert datetime.fromisoformat(last["ended"]) >= datetime.fromisoformat(last["started"])


def test_a_heart_beats_while_the_block_lasts_and_not_after(tmp_path, monkeypatch):
    monkeypatch.setattr(status, "BEAT", 0.01)
    beats, third = [], threading.Event()

    def facts() -> dict:
        beats.append(1)
        if len(beats) == 3:
            third.set()
        return {}

    heart = status.Heart(tmp_path, facts)
    with heart.beating():
        assert third.wait(20)
    ended = len(beats)
    heart.say("done")
    assert not third.wait(0.1) or len(beats) == ended + 1
    assert status.read(tmp_path)["state"] == "done"
    assert not [t for t in threading.enumerate() if t.name == "heartbeat"]


def test_a_heart_outlives_a_disk_that_is_full_for_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(status, "BEAT", 0.01)
    beats, write = [], files.write

    def full_at_times(path, data):
        beats.append(len(beats))
        if 1 <= beats[-1] <= 2:
            raise UserError("cannot write: no space left")
        write(path, data)

    monkeypatch.setattr(files, "write", full_at_times)
    heart, steps = status.Heart(tmp_path, lambda: {"step": len(beats)}), threading.Event()
    with heart.beating():
        while len(beats) < 5 and not steps.wait(0.01):
            pass
    assert status.read(tmp_path)["step"] >= 3


def test_seconds_are_counted_over_the_sessions_of_a_run(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: clock[0])
    first = status.Heart(tmp_path, dict)
    clock[0] += 5
    first.say("interrupted", "stopped by SIGTERM")
    started = status.read(tmp_path)["started"]
    clock[0] += 1000  # nobody trains
    second = status.Heart(tmp_path, dict)
    clock[0] += 2.5
    second.say("done")
    said = status.read(tmp_path)
    assert said["seconds"] == 7.5 and said["started"] == started and said["reason"] is None
    afresh = status.Heart(tmp_path, dict, goes_on=False)
    clock[0] += 1
    afresh.say("done")
    assert status.read(tmp_path)["seconds"] == 1
