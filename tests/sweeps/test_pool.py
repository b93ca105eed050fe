"""Jobs as processes: each dies its own death, and all stop when they are asked to."""

import itertools
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from aavae.runs import status
from aavae.runs.sweep import Job
from aavae.runtime import files, signals
from aavae.sweeps import pool
from aavae.sweeps.pool import Outcome, Pool

SAY = "from pathlib import Path; from aavae.runs import status; here = Path({folder!r}); "
FOREVER = "import time; time.sleep(600)"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pool, "TICK", 0.02)


def jobs_of(folder: Path, programs: list[str]) -> list[Job]:
    return [Job(i, [], folder / str(i), f"seed={i}") for i in range(len(programs))]


def run(folder: Path, *programs: str, slots: tuple[dict, ...] = ({},), watch=lambda states: None) -> list[Outcome]:
    """How `python -c PROGRAM` ends for each program; `{folder!r}` in it is the folder of its job."""
    jobs = jobs_of(folder, programs)
    commands = {
        job.number: [sys.executable, "-c", program.replace("{folder!r}", repr(str(job.folder)))]
        for job, program in zip(jobs, programs, strict=True)
    }
    outcomes = Pool(lambda job: commands[job.number], list(slots), watch).run(jobs)
    assert outcomes.keys() == commands.keys()
    return [outcomes[job.number] for job in jobs]


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until(condition, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# ---- What a job does to itself ------------------------------------------------------------------------------------

DEATHS = {
    "raise ValueError('no such thing')": "ValueError: no such thing",
    "raise SystemExit('aavae-train: bad input')": "bad input",
    "raise SystemExit(3)": "ended with exit code 3 before it was done",
    "print(7, flush=True); raise SystemExit(3)": "ended with exit code 3 before it was done; its last words: 7",
    "import os; os._exit(0)": "ended with exit code 0 before it was done",
    "import os; os.kill(os.getpid(), 9)": "killed by SIGKILL, as when memory runs out",
    "import os; os.kill(os.getpid(), 11)": "killed by SIGSEGV",
    "import os; os.kill(os.getpid(), 40)": "killed by signal 40",
    "import os; os.abort()": "killed by SIGABRT",
    "import resource as r; r.setrlimit(r.RLIMIT_AS, (2**29, 2**29)); x = bytearray(2**31)": "MemoryError",
    "import ctypes; ctypes.string_at(0)": "killed by SIGSEGV",
    "def f(): f()\nf()": "RecursionError: maximum recursion depth exceeded",
    "this is no Python": "SyntaxError: invalid syntax",
    # It takes away what others would look at.
    "import shutil; shutil.rmtree({folder!r}); raise SystemExit(4)": "ended with exit code 4 before it was done",
    "open({folder!r} + '/status.json', 'w').write('{'); raise SystemExit(4)": (
        "ended with exit code 4 before it was done"
    ),
    "import os; os.remove({folder!r} + '/log.txt'); os.mkdir({folder!r} + '/log.txt'); raise SystemExit(4)": (
        "ended with exit code 4 before it was done"
    ),
}


def test_a_job_dies_its_own_death(tmp_path):
    score = SAY + "status.write(here, 'done', score=0.5)"
    *dead, survivor = run(tmp_path, *DEATHS, score)
    assert survivor == Outcome("done", 0.5)
    for (program, reason), outcome in zip(DEATHS.items(), dead, strict=True):
        assert outcome == Outcome("failed", None, reason), program
    for i, program in enumerate(DEATHS):
        if "{folder!r}" not in program:
            said = status.read(tmp_path / str(i))
            assert (said["state"], said["reason"]) == ("failed", dead[i].reason) and said["ended"]
            assert said["name"] == f"seed={i}"


def test_the_log_has_the_traceback(tmp_path):
    run(tmp_path, "print('to stdout', flush=True)\nraise ValueError('x')")
    log = (tmp_path / "0" / "log.txt").read_text()
    assert log.startswith("to stdout\nTraceback") and 'File "<string>", line 2' in log


def test_a_log_is_appended_to_and_a_new_death_not_explained_by_an_old_one(tmp_path):
    (first,) = run(tmp_path, "raise SystemExit('the first reason')")
    (second,) = run(tmp_path, "import sys; sys.exit(1)")
    assert first.reason == "the first reason"
    assert second.reason == "ended with exit code 1 before it was done"
    assert (tmp_path / "0" / "log.txt").read_text() == "the first reason\n"


def test_the_last_words_of_an_endless_log_are_found(tmp_path):
    (outcome,) = run(tmp_path, "import sys; sys.stdout.write('x\\n' * 10**6 + '\\n\\n'); sys.exit('the end')")
    assert outcome.reason == "the end"


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_what_a_job_says_of_its_end_is_believed(tmp_path, state):
    (outcome,) = run(tmp_path, SAY + f"status.write(here, {state!r}, 'its own words', score=0.5); raise SystemExit(1)")
    assert outcome == Outcome(state, None, "its own words")


def test_done_is_what_says_so_and_ends_well(tmp_path):
    done = SAY + "status.write(here, 'done', score=0.25); "
    ended, crashed = run(tmp_path, done, done + "import os; os._exit(5)")
    assert ended == Outcome("done", 0.25)
    assert crashed.state == "failed" and "exit code 5" in crashed.reason


def test_what_was_said_before_it_began_is_no_end(tmp_path):
    (tmp_path / "0").mkdir()
    status.write(tmp_path / "0", "failed", "long ago")
    (ended,) = run(tmp_path, "import os; os._exit(0)")
    assert ended == Outcome("failed", None, "ended with exit code 0 before it was done")


def test_a_run_that_is_done_stays_done_until_its_job_begins(tmp_path):
    for i in (0, 1, 2):
        (tmp_path / str(i)).mkdir()
        status.write(tmp_path / str(i), "done", score=0.5)
    before = [status.read(tmp_path / str(i)) for i in (0, 1, 2)]
    begun = SAY + "status.write(here, 'running'); import os; os._exit(5)"
    refused, again, died = run(tmp_path, "import sys; sys.exit('wrong folder')", "pass", begun)
    assert refused == Outcome("failed", None, "wrong folder") and again == Outcome("done", 0.5)
    assert [status.read(tmp_path / str(i)) for i in (0, 1)] == before[:2]
    assert died.state == status.read(tmp_path / "2")["state"] == "failed"


# ---- Beginning ----------------------------------------------------------------------------------------------------


def test_a_command_that_cannot_be_started_fails_alone(tmp_path):
    jobs = jobs_of(tmp_path, [""] * 3)
    commands = [["/nowhere/python"], [str(tmp_path)], [sys.executable, "-c", "raise SystemExit('it ran')"]]
    outcomes = Pool(lambda job: commands[job.number], [{}], lambda states: None).run(jobs)
    assert "could not be started" in outcomes[0].reason and "No such file" in outcomes[0].reason
    assert "Permission denied" in outcomes[1].reason
    assert outcomes[2].reason == "it ran"


def test_a_folder_that_cannot_be_made_fails_alone(tmp_path):
    (tmp_path / "0").write_text("no folder")
    (tmp_path / "1" / status.STATUS).mkdir(parents=True)
    first, second, third = run(tmp_path, "pass", "pass", "raise SystemExit('it ran')")
    assert first.state == second.state == "failed" and third.reason == "it ran"
    assert "could not be started" in first.reason and "cannot write" in second.reason


def test_a_run_that_another_process_is_busy_with_is_left_alone(tmp_path):
    (tmp_path / "0").mkdir()
    status.write(tmp_path / "0", "running", step=5)
    before = (tmp_path / "0" / status.STATUS).read_bytes()
    with files.only_one(tmp_path / "0"):
        (outcome,) = run(tmp_path, "raise SystemExit('it ran')")
    assert outcome.state == "failed" and "another process is busy" in outcome.reason
    assert (tmp_path / "0" / status.STATUS).read_bytes() == before


def test_so_many_at_a_time_and_each_slot_is_handed_on(tmp_path):
    tell = (
        "import os, time; own = [os.environ[k] for k in ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS', 'KEPT')]; "
        "a = time.monotonic(); time.sleep(0.3); print(*own, a, time.monotonic())"
    )
    slots = tuple({"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": "3"} for gpu in ("5", "7"))
    most = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEPT", "yes")
        patch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
        run(tmp_path, *[tell] * 5, slots=slots, watch=lambda s: most.append(list(s.values()).count("running")))
    told = [(tmp_path / str(i) / "log.txt").read_text().split() for i in range(5)]
    assert {words[0] for words in told} == {"5", "7"} and {(words[1], words[2]) for words in told} == {("3", "yes")}
    for gpu in "57":  # one after the other on each
        times = sorted((float(a), float(b)) for own, _, _, a, b in told if own == gpu)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(times))
    assert max(most) == 2


def test_the_watcher_sees_every_job_run_and_end(tmp_path):
    seen = []
    run(tmp_path, "import time; time.sleep(0.3)", "raise SystemExit(1)", watch=lambda states: seen.append(dict(states)))
    assert {0: "running"} in seen and {0: "failed", 1: "running"} in seen
    assert seen[-1] == {0: "failed", 1: "failed"}


def test_jobs_know_that_they_are_jobs_and_get_a_session_of_their_own(tmp_path):
    run(tmp_path, "import os; print(os.environ['AAVAE_JOB'], os.getsid(0) == os.getpid(), os.getppid())")
    assert (tmp_path / "0" / "log.txt").read_text().split() == ["1", "True", str(os.getpid())]


# ---- Stopping -----------------------------------------------------------------------------------------------------

SAVES = (  # counts the signals it gets; then says what an interrupted run says
    SAY + "import os, signal, time; got = []; "
    "hear = lambda s, f: got.append(s); signal.signal(signal.SIGTERM, hear); signal.signal(signal.SIGINT, hear); "
    "open(here / 'ready', 'w')\n"
    "while not got: time.sleep(0.01)\n"
    "time.sleep(0.3); status.write(here, 'interrupted', f'got {got}'); raise SystemExit(143)"
)
STUBBORN = (
    "import os, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "os.chdir({folder!r}); open('worker', 'w').write(str(child.pid)); os.rename('worker', 'ready')\n"
    "while True: time.sleep(0.1)"
)


def signalling(folder: Path, count: int, *signals: int):
    """A watcher that sends this process the signals one by one, once `count` jobs are ready."""
    left = list(signals)

    def watch(states: dict) -> None:
        if left and len(list(folder.glob("*/ready"))) >= count:
            os.kill(os.getpid(), left.pop(0))

    return watch


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_each_job_once_to_stop_and_begins_no_other(tmp_path, signum, capfd):
    jobs = jobs_of(tmp_path, [SAVES] * 3)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    command = [[sys.executable, "-c", SAVES.replace("{folder!r}", repr(str(job.folder)))] for job in jobs]
    p = Pool(lambda job: command[job.number], [{}, {}], signalling(tmp_path, 2, signum))
    outcomes = p.run(jobs)
    assert p.stopped == signum
    assert outcomes == {i: Outcome("interrupted", None, f"got [{int(signal.SIGTERM)}]") for i in (0, 1)}
    assert not (tmp_path / "2").exists()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert "Ctrl-C again kills" in capfd.readouterr().err


def test_a_job_that_dies_of_the_signal_was_interrupted(tmp_path):
    ready = "open({folder!r} + '/ready', 'w'); "
    outcomes = run(tmp_path, ready + FOREVER, watch=signalling(tmp_path, 1, signal.SIGINT))
    assert outcomes == [Outcome("interrupted", None, "stopped with the sweep")]
    assert status.read(tmp_path / "0")["state"] == "interrupted"


def test_a_second_ctrl_c_kills_jobs_and_their_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "AGAIN", 0.0)
    outcomes = run(tmp_path, STUBBORN, watch=signalling(tmp_path, 1, signal.SIGINT, signal.SIGINT))
    assert outcomes == [Outcome("interrupted", None, "stopped with the sweep")]
    worker = int((tmp_path / "0" / "ready").read_text())
    assert until(lambda: not alive(worker))


def test_patience_with_a_job_that_will_not_stop_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "GRACE", 0.3)
    outcomes = run(tmp_path, STUBBORN, watch=signalling(tmp_path, 1, signal.SIGTERM))
    assert outcomes[0].state == "interrupted"


def test_a_signal_while_a_job_is_begun_stops_that_one_too(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "GRACE", 20)
    began = time.monotonic()

    def command(job: Job) -> list[str]:
        os.kill(os.getpid(), signal.SIGINT)
        return [sys.executable, "-c", FOREVER]

    p = Pool(command, [{}], lambda states: None)
    assert p.run(jobs_of(tmp_path, ["", ""])) == {0: Outcome("interrupted", None, "stopped with the sweep")}
    assert time.monotonic() - began < 15


def test_a_watcher_that_breaks_stops_the_jobs_as_a_signal_would(tmp_path):
    def watch(states: dict) -> None:
        if (tmp_path / "0" / "ready").exists():
            raise BrokenPipeError("nobody looks")

    with pytest.raises(BrokenPipeError):
        run(tmp_path, SAVES, "raise SystemExit('it ran')", watch=watch)
    assert status.read(tmp_path / "0")["reason"] == f"got [{int(signal.SIGTERM)}]"
    assert not (tmp_path / "1").exists()


# A command of aavae, without torch: it would run for ten minutes.
COMMAND = """
import sys, time
from pathlib import Path
from aavae.command import Command
class Slow(Command):
    name = "slow"
    def execute(self, argv):
        try:
            Path(argv[0], "ready").write_text("")
            time.sleep(600)
        except KeyboardInterrupt as error:
            Path(argv[0], "saved").write_text(type(error).__name__)
            raise
Slow().main()
"""
LAUNCHER = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup would have had ignored
from aavae.sweeps.pool import Pool
from aavae.runs.sweep import Job
here = Path(sys.argv[1])
jobs = [Job(i, [], here / str(i), "") for i in (0, 1)]
Pool(lambda job: [sys.executable, str(here / "slow.py"), str(job.folder)], [{}, {}], lambda states: None).run(jobs)
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGHUP])
def test_jobs_end_with_the_process_that_launched_them_whatever_it_died_of(tmp_path, signum):
    (tmp_path / "slow.py").write_text(COMMAND)
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path)])
    ready = [tmp_path / str(i) / "ready" for i in (0, 1)]
    try:
        assert until(lambda: all(path.exists() for path in ready))
    finally:
        launcher.send_signal(signum)
        launcher.wait()
    saved = [tmp_path / str(i) / "saved" for i in (0, 1)]
    assert until(lambda: all(path.exists() and path.read_text() for path in saved))
    assert [path.read_text() for path in saved] == ["Interrupted"] * 2


def test_a_command_that_is_no_job_does_not_mind_the_end_of_its_input(tmp_path):
    (tmp_path / "slow.py").write_text(COMMAND.replace("time.sleep(600)", "time.sleep(0.5)"))
    environment = {k: v for k, v in os.environ.items() if k != "AAVAE_JOB"}
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "slow.py"), str(tmp_path)], stdin=subprocess.DEVNULL, env=environment
    )
    assert ended.returncode == 0 and not (tmp_path / "saved").exists()
