"""The command line: Hydra's options, none of them abbreviated, and what is typed as an option but is a key."""

import argparse
import difflib
import os
import re
import shlex
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from aavae.config import compose, hints
from aavae.config.schema import Schema
from aavae.errors import UserError

ONE = ("run", "multirun", "cfg", "info", "shell_completion", "help", "hydra_help")  # one of these at a time
REFUSED = ("--experimental-rerun", "--config-path", "--config-name")
WORD = re.compile(r"""(?:[^\s'"\\]|\\.|'[^']*'|"[^"]*")+""")  # of a shell's line, quoted or not


def arguments(words: Sequence[str], primary: str) -> argparse.Namespace:
    """The words of a command, as Hydra understands them. Raises UserError for what it does not, or we do not."""
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # Hydra makes the parser
    options = {o: action for action in parser._actions for o in action.option_strings}
    awaited = False  # whether a word is the value of the option before it
    for i, word in enumerate(words):
        if word == "--":
            break
        name, equals, _ = word.partition("=")
        following = [w for w in words[i + 1 : i + 2] if "=" not in w and not w.startswith(("-", "~"))]
        if not awaited and word.startswith("-") and name not in options:
            raise UserError(_not_an_option(word, following, [*options], primary))
        if not awaited and name in options and options[name].nargs == 0 and (equals or following):
            keys = _keys(primary)
            if (key := name.lstrip("-")) in keys:  # as --run FOLDER, which is an option of Hydra's too
                raise UserError(f"{word} takes no value; {_typed(word, key, key, following)}")
        awaited = not awaited and word in options and options[word].nargs is None
    asked = parser.parse_intermixed_args(list(words))  # options and settings in any order
    if asked.config_name or asked.config_path:
        raise UserError("there is one primary config; add your own with --config-dir and choose among them")
    if asked.experimental_rerun:
        raise UserError("--experimental-rerun is not supported: the same command again continues its run")
    modes = [name for name in ONE if getattr(asked, name)]
    if asked.multirun and asked.cfg:
        raise UserError("--cfg shows the config of one job; leave out -m, and choose one value of each")
    if len(modes) > 1 and not {"help", "hydra_help"} & {*modes}:
        raise UserError(f"--{modes[0].replace('_', '-')} and --{modes[1].replace('_', '-')} exclude each other")
    if (asked.resolve or asked.package) and not asked.cfg:
        raise UserError(f"{'--resolve' if asked.resolve else '--package'} goes with --cfg job")
    return asked


def for_completion(words: Sequence[str]) -> list[str]:
    """The words of a completion's query with the `--config-dir` of the line that is completed, whose options are taken
    out of `COMP_LINE`: Hydra takes them for overrides."""
    line = os.environ.get("COMP_LINE", "")
    program, *typed = WORD.findall(line)
    last = typed.pop() if typed and not line.endswith(" ") else ""
    kept, folder = [], None
    while typed:
        word = typed.pop(0)
        name, equals, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            folder = value if equals else typed.pop(0) if typed else None
        elif not word.startswith("-"):
            kept += [plain for plain in shlex.split(word) if not re.search(r"\s", plain)]  # Hydra splits at spaces
    os.environ["COMP_LINE"] = " ".join([program, *kept, last])
    # Who completes a line cannot read a complaint about it.
    found = [os.path.expanduser(path) for path in shlex.split(folder or "") if os.path.isdir(os.path.expanduser(path))]
    return [*(["--config-dir", found[0]] if found else []), *words]


def _refuse(message: str) -> NoReturn:
    raise UserError(f"cannot read the options: {message}")


def _keys(primary: str) -> list[str]:
    return list(dict.fromkeys(Schema(compose((), primary=primary), primary).keys()))


def _typed(word: str, name: str, key: str, following: Sequence[str]) -> str:
    """How `key` is typed, for which somebody has written the option `name`."""
    value = word.partition("=")[2] or next(iter(following), "")
    typed = shlex.quote(f"{key}={value}") if value else f"{key}=…"
    return f"{'this' if key == name else 'did you mean this? It'} is typed {typed}"


def _not_an_option(word: str, following: Sequence[str], options: list[str], primary: str) -> str:
    name, keys = word.lstrip("-").partition("=")[0], _keys(primary)
    begun = [k for k in keys if name and "." not in k and k.startswith(name)]
    if key := name if name in keys else begun[0] if len(begun) == 1 else hints.nearest(name, keys):
        return f"there is no option {word}; {_typed(word, name, key, following)}"
    near = difflib.get_close_matches(word.partition("=")[0], [o for o in options if o not in REFUSED], 1)
    return f"there is no option {word}; " + (f"did you mean {near[0]}?" if near else "--help shows what there is")
