"""The words of the commands that have a few settings of their own, written NAME=VALUE, and no config."""

import argparse
import difflib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from aavae import __version__
from aavae.errors import UserError
from aavae.runtime.words import wrapped


class Parser(argparse.ArgumentParser):
    """One whose errors are sentences. Raises UserError."""

    def error(self, message: str):
        raise UserError(f"{message}; --help shows what there is")


class Typed:
    """The words of the command `name`: as many `places` as its usage begins with, then settings from `options`, whose
    values say what each is for. `more` is text below the list of them in `--help`."""

    def __init__(self, name: str, usage: str, about: str, options: Mapping[str, str], places: int = 0, more: str = ""):
        self.name, self.usage, self.about, self.options = name, usage, about, options
        self.places, self.more = places, more

    def _parser(self) -> Parser:
        width = max(map(len, self.options)) + 4
        listed = "\n".join(["settings:", *(f"  {name}=".ljust(width) + text for name, text in self.options.items())])
        parser = Parser(
            prog=self.name,
            usage=self.usage,
            description=wrapped(self.about),
            epilog=wrapped("\n\n".join(filter(None, [listed, self.more]))),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument("--version", action="version", version=f"aavae {__version__}")
        parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
        return parser

    def read(self, argv: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
        """The paths in their places, and the settings by name. Raises UserError for anything else; `--help` and
        `--version` print, and exit."""
        known, unknown = self._parser().parse_known_args(argv)
        if unknown:
            self._refuse(unknown[0], argv)
        paths, words = known.words[: self.places], known.words[self.places :]
        if len(paths) < self.places or any(self._is_setting(path) for path in paths):
            raise UserError(f"the command is {self.usage}; see --help")
        settings: dict[str, str] = {}
        for word in words:
            name, equals, value = word.partition("=")
            if not equals:
                raise UserError(f"{word} is not a setting; settings are written NAME=VALUE, see --help")
            if name not in self.options:
                near = self._near(name)
                raise UserError(f"there is no setting {name}=; " + (f"did you mean {near}=?" if near else "see --help"))
            settings[name] = value
        return [Path(path).expanduser() for path in paths], settings

    def _is_setting(self, word: str) -> bool:
        return word.partition("=")[0] in self.options and "=" in word

    def _near(self, name: str) -> str | None:
        return next(iter(difflib.get_close_matches(name.replace("-", "_"), self.options, 1)), None)

    def _refuse(self, option: str, argv: Sequence[str]) -> None:
        name, _, value = option.lstrip("-").partition("=")
        value = value or next((after for word, after in itertools.pairwise(argv) if word == option), "VALUE")
        near = self._near(name)
        typed = f"this is typed {near}={value}" if near else "settings are written NAME=VALUE, see --help"
        raise UserError(f"there is no option {option}; {typed}")
