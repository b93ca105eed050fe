"""Entry: find runs, compare them, write about them, tidy up (`aavae-runs`)."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from aavae import __version__
from aavae.errors import UserError
from aavae.runtime import exits
from aavae.runtime.typed import Parser

COMMANDS = ("ls", "show", "diff", "best", "tail", "prune", "note", "tag")
PAUSE = 0.5  # seconds between two looks at a run that is followed


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="aavae-runs",
        description="Find runs, compare them, write about them, tidy up. A RUN is a folder, the beginning of its name, "
        "or @last.",
        epilog="WHAT chooses among runs: folders to look in (otherwise outputs and multirun), and filters such as "
        "state=done, method=aavae, 'optimizer.lr<1e-3', since=7d, tag=paper; with sort=score or sort=-age in order. "
        "Exit codes: 0 done, 1 what was followed failed, 2 bad input, or no such run.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"aavae {__version__}")
    commands = parser.add_subparsers(dest="command", metavar=f"{{{','.join(COMMANDS)}}}", required=True)

    def add(name: str, text: str, *words: tuple[str, str | None, str]) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        for word, nargs, help in words:
            own.add_argument(word, nargs=nargs, metavar=word.upper(), help=help)
        return own

    what = ("what", "*", "folders, filters, sort=KEY")
    run = ("run", None, "a folder, the beginning of its name, or @last")
    listing = add("ls", "list runs, the newest first, with the settings in which they differ", what)
    listing.add_argument("--json", action="store_true", help="all that is known, for programs")
    add("show", "show the state of a run, its differences from the preset, and its results", run)
    add("diff", "show in what two runs differ", ("first", None, run[2]), ("second", None, run[2]))
    best = add("best", "show the run with the best score on validation images, and those next to it", what)
    best.add_argument("-n", type=int, default=5, help="how many; 5")
    best.add_argument("--json", action="store_true", help="all that is known, for programs")
    add("tail", "follow a run until it ends", run)
    prune = add("prune", "list files that are not needed; remove them with --yes", what)
    prune.add_argument("--yes", action="store_true", help="remove it")
    prune.add_argument(
        "--keep", action="append", default=[], metavar="KIND", help="leave previous, checkpoints or failed"
    )
    add("note", "write a sentence about a run", run, ("text", "+", "the sentence"))
    tag = add("tag", "give tags to a run", run, ("tags", "+", "words"))
    tag.add_argument("--remove", action="store_true", help="take them away")
    return parser


def _work() -> int:
    asked = _parser().parse_args()
    work: Callable[[argparse.Namespace], int] = globals()[f"_{asked.command}"]
    return work(asked)


def _found(words: Sequence[str], sort: str | None = None):
    from aavae.reports import shelf

    folders = [Path(word).expanduser() for word in words if not shelf.is_filter(word)]
    filters = [word for word in words if shelf.is_filter(word)]
    orders = [word.partition("=")[2] for word in filters if word.startswith("sort=")]
    where = shelf.places(folders)
    runs, problems = shelf.find(where)
    for problem in problems:
        print(f"aavae-runs: {problem}", file=sys.stderr)
    if not runs:
        raise UserError(f"there is no run in {' or '.join(map(str, where or shelf.PLACES))}")
    runs = shelf.chosen(runs, [word for word in filters if not word.startswith("sort=")])
    for order in [*([sort] if sort else []), *orders]:
        runs = shelf.in_order(runs, order)
    return runs


def _console():
    from aavae.loggers.screen import Reporter

    return Reporter().console


def _ls(asked: argparse.Namespace) -> int:
    return _listed(_found(asked.what), asked.json)


def _best(asked: argparse.Namespace) -> int:
    if asked.n < 1:
        raise UserError(f"-n must be 1 or more, not {asked.n}")
    runs = [run for run in _found(asked.what, "score") if run.get("score") is not None]
    return _listed(runs[: asked.n], asked.json)


def _listed(runs: list, as_json: bool) -> int:
    from aavae.reports import listing

    if as_json:
        print(json.dumps([listing.as_data(run) for run in runs], indent=1, default=str))
    elif runs:
        listing.show(runs, _console())
    else:
        print("no run passes these filters")
    return 0 if runs else 1


def _show(asked: argparse.Namespace) -> int:
    from aavae.reports import comparing, shelf

    run = shelf.called(asked.run)
    preset, name = _preset(run)
    comparing.show(run, preset, name, _console())
    return 0


def _preset(run) -> tuple[dict[str, object], str]:
    """The settings that the run would have if nothing had been typed but its experiment and its method."""
    from aavae import build
    from aavae.runs.identity import identity_config

    typed = run.job.overrides or {}
    words = [f"{key}={typed[key]}" for key in ("experiment", "method", "dataset") if isinstance(typed.get(key), str)]
    name = " ".join(words) or "the defaults"
    try:
        config = build.plain(build.compose(words))
    except UserError:  # an experiment of the user's own, which is not here
        config, name = build.plain(build.compose([])), "the defaults"
    return identity_config(config) | {"epochs": config["epochs"]}, name


def _diff(asked: argparse.Namespace) -> int:
    from aavae.reports import comparing, shelf

    comparing.compare(shelf.called(asked.first), shelf.called(asked.second), _console())
    return 0


def _tail(asked: argparse.Namespace) -> int:
    from aavae.reports import shelf
    from aavae.reports.following import follow

    return follow(shelf.called(asked.run).folder, PAUSE, time.sleep)


def _prune(asked: argparse.Namespace) -> int:
    from aavae.reports.listing import sizes
    from aavae.runs import tidy

    if unknown := [kind for kind in asked.keep if kind not in tidy.KINDS]:
        raise UserError(f"--keep knows {', '.join(tidy.KINDS)}, not {unknown[0]}")
    kinds = [kind for kind in tidy.KINDS if kind not in asked.keep]
    found = [
        surplus
        for run in _found(asked.what)
        for surplus in tidy.surplus(run.folder, run.job.state, kinds, bool(run.notes.notes or run.notes.tags))
    ]
    removed, code = [], 0
    for surplus in found if asked.yes else ():
        try:
            tidy.remove(surplus)
            removed.append(surplus)
        except UserError as error:
            print(f"aavae-runs: {error}", file=sys.stderr)
            code = 1
    sizes(removed if asked.yes else found, asked.yes, _console())
    return code


def _note(asked: argparse.Namespace) -> int:
    from aavae.reports import shelf
    from aavae.runs import notes

    folder = shelf.called(asked.run).folder
    notes.add_note(folder, " ".join(asked.text))
    print(f"written to {folder / notes.NOTES}")
    return 0


def _tag(asked: argparse.Namespace) -> int:
    from aavae.reports import shelf
    from aavae.runs import notes

    folder, words = shelf.called(asked.run).folder, set(asked.tags)
    if strange := [word for word in words if "=" in word or any(c.isspace() for c in word)]:
        raise UserError(f"{strange[0]!r} is not a tag: a tag is one word without =")
    tags = notes.change_tags(folder, set() if asked.remove else words, words if asked.remove else set())
    print(f"{folder}: {' '.join(tags) or 'no tags'}")
    return 0


def main() -> None:
    """The command `aavae-runs`. Exit codes: 0 done, 1 no run passes, something was not removed, or what was followed
    failed, 2 bad input, 128 + n stopped by signal n."""
    sys.exit(exits.run("aavae-runs", _work))


if __name__ == "__main__":
    main()
