"""The table of faults: which tests inject which fault, how, how often they did in this session, and what came of it.

`make test-faults` prints it at its end; docs/faults.md has it as it was printed.
"""

from collections import Counter
from typing import NamedTuple


class Row(NamedTuple):
    """A fault, how it is injected, what the tests require of the outcome, and the tests: file and start of a name."""

    fault: str
    how: str
    outcome: str
    tests: tuple[str, ...]


BAD, DAMAGED, DAMAGE, KILLS, DISKS, IMAGES, BOARDS, PROCESSES, CLOCK, SIGNALS, LOCKS, LOGGERS, FOLDERS, TORCHRUN = (
    f"tests/{name}.py::test_"
    for name in ("test_bad_input", "faults/test_damaged_files", "weights/test_damage", "faults/test_kills",
                 "faults/test_disks", "faults/test_images", "faults/test_unreachable", "faults/test_processes",
                 "faults/test_clock", "runtime/test_signals", "runtime/test_locks", "loggers/test_loggers",
                 "datasets/test_folders", "training/test_torchrun")
)  # fmt: skip
ROWS = (
    Row(
        "bad overrides and plans",
        "words that Hypothesis makes, on the command line",
        "a valid plan, or one sentence; nothing is written",
        (BAD + "overrides", BAD + "plans"),
    ),
    Row(
        "bad YAML of one's own",
        "edits and other values; flips, truncations, foreign, swapped",
        "a valid plan, or one sentence; nothing is written",
        (BAD + "own_yaml", DAMAGED + "configs_of_ones_own"),
    ),
    Row(
        "damaged checkpoints",
        "edits of bytes, pickles and values; flips, truncations, foreign, swapped",
        "refused in one sentence, or exactly what was written",
        (
            BAD + "bytes_of_weights",
            BAD + "pickles",
            BAD + "contents",
            BAD + "commands_on_weights",
            DAMAGED + "checkpoints",
            DAMAGE + "no_flipped_bit_of_a_checkpoint",
            DAMAGE + "the_damaged_one",
        ),
    ),
    Row(
        "damaged encoder files",
        "edits of facts; flips, truncations, foreign, swapped",
        "refused in one sentence, or exactly what was written",
        (BAD + "facts_of_encoders", DAMAGED + "encoder_files", DAMAGE + "no_flipped_bit_of_an_encoder"),
    ),
    Row(
        "damaged weights of others",
        "flips, truncations, foreign, swapped: Lightning, state dict, safetensors",
        "tensors, or one sentence",
        (DAMAGED + "weights_of_others",),
    ),
    Row(
        "damaged files of runs",
        "edits and other values; flips, truncations, foreign, swapped: the seven small files",
        "`aavae-runs` and `aavae-report` go on, and name what is damaged; results are sealed",
        (BAD + "files_of_runs", BAD + "reports", BAD + "numbers", DAMAGED + "small_files", DAMAGED + "results"),
    ),
    Row(
        "damaged images",
        "edits of bytes; flips, truncations, foreign, swapped: seven formats",
        "an image, or one sentence",
        (BAD + "images", DAMAGED + "pictures"),
    ),
    Row(
        "damaged zips of images",
        "edits of bytes; flips, truncations, foreign, swapped",
        "images, or one sentence",
        (BAD + "zips", DAMAGED + "zips"),
    ),
    Row(
        "damaged cache of checks",
        "flips, truncations, foreign, swapped",
        "what was found, or the check is made again",
        (DAMAGED + "a_remembered",),
    ),
    Row(
        "SIGKILL at random moments",
        "in one run, a random time after its start or after a save",
        "weights, encoder and numbers are bit-identical with an undisturbed run's",
        (KILLS + "a_run_that_is_killed_at_random", "tests/test_train.py::test_a_run_killed"),
    ),
    Row(
        "SIGKILL inside a save",
        "before each open, write (halved), sync, link and rename by which a run writes files",
        "weights, encoder and numbers are bit-identical; no file is half-written",
        (KILLS + "a_run_that_is_killed_at_an",),
    ),
    Row(
        "disk full at a write",
        "from each open, write (halved), sync, link and rename on: no space left",
        "one sentence, exit code 2, nothing half-written; the run goes on to the same bits",
        (KILLS + "a_disk",),
    ),
    Row(
        "disk full while saving",
        "a small tmpfs with 0 to 1,500 kB left, or filled in training",
        "one sentence, exit code 2, the checkpoint before is whole; the run goes on to the same bits",
        (DISKS + "with_any_room", DISKS + "a_disk_that_becomes"),
    ),
    Row(
        "disk full while logging",
        "a small tmpfs filled between two lines of `metrics.jsonl`",
        "one sentence, exit code 2; the half line is dropped, and the run goes on",
        (DISKS + "a_disk_that_is_full_while_it_logs",),
    ),
    Row(
        "W&B's folder full",
        "a small tmpfs with 0 to 900 kB left, before the start or in training",
        "said once; the run goes on without W&B; what W&B had is whole",
        (DISKS + "the_full_folder", DISKS + "what_weights"),
    ),
    Row(
        "W&B unreachable",
        "a closed port, a server that is silent, a name that nobody knows",
        "said once; the run is kept offline",
        (BOARDS + "a_server", LOGGERS + "not_logged_in"),
    ),
    Row(
        "W&B's process killed",
        "SIGKILL to its service while a run logs",
        "said once; the run goes on without W&B",
        (BOARDS + "a_run_whose_service", LOGGERS + "a_service_that_dies"),
    ),
    Row(
        "a loader worker killed",
        "SIGKILL to the processes that read images",
        "one sentence, exit code 2; what was learned is saved",
        (SIGNALS + "a_worker_that_is_killed",),
    ),
    Row(
        "a process of several killed",
        "SIGKILL to one of two that train together",
        "the other ends in a sentence; the run goes on",
        (TORCHRUN + "where_a_process_is_killed",),
    ),
    Row("the parent of workers gone", "it exits, or SIGKILL", "its workers end", (SIGNALS + "workers_end",)),
    Row(
        "bad images before the start",
        "truncated, in a folder, in a zip, in memory or streamed",
        "named and counted; fatal or left out, by `dataset.on_error`",
        (FOLDERS + "all_bad_images", FOLDERS + "a_damaged_image"),
    ),
    Row(
        "images lost in training, `on_error=fail`",
        "vanished, emptied, truncated, foreign or a folder, after a step",
        "one sentence, exit code 2; once they are back the run goes on to the same bits",
        (IMAGES + "an_image_lost_in_training_stops",),
    ),
    Row(
        "images lost in training, `on_error=skip`",
        "vanished, emptied, truncated, foreign or a folder, after a step",
        "named and counted; the next image takes the place",
        (IMAGES + "an_image_lost_in_training_is_named", IMAGES + "another_image"),
    ),
    Row(
        "two processes on one run folder",
        "started at once, or within a second; a folder that is held",
        "one trains; the other is refused in one sentence, exit code 2",
        (PROCESSES + "of_two", LOCKS),
    ),
    Row(
        "signals to the whole process group",
        "five signals at random moments, once or three times, to a run with workers",
        "exit code 128 + n, the state is saved, no process is left; weights are bit-identical",
        (PROCESSES + "signals",),
    ),
    Row(
        "signals at every stage",
        "five signals to the process: reading, training, validating, probing, closing",
        "exit code 128 + n, the state is saved",
        (
            SIGNALS + "in_training",
            SIGNALS + "while_",
            SIGNALS + "a_run_that_goes_on",
            SIGNALS + "a_signal_to_the_workers",
            SIGNALS + "report_and_convert",
        ),
    ),
    Row(
        "a clock that jumps",
        "every look at the clock is up to a day off",
        "weights, encoder and numbers are bit-identical",
        (CLOCK + "a_run_whose_clock",),
    ),
    Row(
        "a clock that was set",
        "five hours forth or back since the last heartbeat, or while TensorBoard's files are written",
        "alive and dead runs on this machine are told apart; files stay in order",
        (CLOCK + "a_run_on_this_machine", CLOCK + "a_run_that_is_killed", CLOCK + "tensorboard"),
    ),
)
HEAD = ("fault", "injected how", "times", "outcome")


def row_of(nodeid: str) -> Row | None:
    """The row to which a test counts."""
    return next((row for row in ROWS if nodeid.startswith(row.tests)), None)


def lines(reports: list) -> list[str]:
    """The table in Markdown: `reports` are pytest's, of all phases. A test that counts nothing itself counts as one."""
    tests: dict[str, list] = {}
    for report in reports:
        if row_of(getattr(report, "nodeid", "")) and hasattr(report, "when"):
            tests.setdefault(report.nodeid, []).append(report)
    times: dict[Row, Counter] = {row: Counter() for row in ROWS}
    for name, phases in tests.items():
        row, outcomes = row_of(name), {phase.outcome for phase in phases}
        said = next((dict(phase.user_properties)["examples"] for phase in phases if _counts(phase)), None)
        if bad := outcomes & {"failed", "skipped"}:
            times[row][f"tests {max(bad, key='failed'.__eq__)}".upper()] += 1
        else:
            times[row].update(said if said is not None else {"": 1})
    found = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for row, ends in times.items():
        if ends:
            n = sum(n for how, n in ends.items() if not how.isupper())
            detail = ", ".join(f"{n:,} {how}" for how, n in sorted(ends.items()) if how and n)
            found.append(f"| {row.fault} | {row.how} | {n:,} | {row.outcome}{f' ({detail})' if detail else ''} |")
    return found


def _counts(phase) -> bool:
    return phase.when == "teardown" and "examples" in dict(phase.user_properties)
