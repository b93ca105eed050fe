"""Formatting text: plurals, shortened names, wrapped lines and commands, tables in Markdown and LaTeX."""

import hashlib
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

LATEX = {  # what LaTeX reads as a command, and what pdfLaTeX has no letter for in every font
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$", "–": "--", "−": "$-$", "×": r"$\times$",
    "≈": r"$\approx$", "μ": r"$\mu$", "β": r"$\beta$", "σ": r"$\sigma$", "…": r"\ldots{}", "²": r"$^2$",
}  # fmt: skip
UNLIMITED = 100_000  # columns of a file or a pipe


def count(n: float, noun: str, spec: str = ",") -> str:
    """A number in the format `spec` and its noun, which has an `s` unless there is one: `1 epoch`, `1,297 images`."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{n:{spec}} {noun}{'' if n == 1 else plural}"


def epochs(n: float) -> str:
    """A number of epochs, which may end within one: `0.11 epochs`."""
    return count(round(n, 2), "epoch", ".10g")


def described(thing: Any) -> str:
    """What something is that should be something else: `a list`, `a Tensor of float32 and shape (2, 3)`."""
    if thing is None:
        return "None"
    kind = type(thing).__name__
    what = f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"
    if hasattr(thing, "dtype") and hasattr(thing, "shape"):
        what += f" of {str(thing.dtype).removeprefix('torch.')} and shape {tuple(thing.shape)}"
    return what


def shortened(name: str, most: int = 128) -> str:
    """A name of at most so many characters; a longer one ends in eight digits of its SHA-256, and stays unique."""
    if len(name) <= most:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{name[: most - len(digest) - 1]}…{digest}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table, the columns `right` aligned to the right."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    return _table(head, body, right, "pipe")


def latex_table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A LaTeX tabular with the rules of booktabs, the columns `right` aligned to the right."""
    text = _table(head, list(rows), right, "latex_booktabs")  # which escapes what is ASCII
    return "".join(c if c.isascii() else LATEX.get(c, c) for c in text)


def latex_escaped(text: str) -> str:
    """The text as LaTeX prints it."""
    return "".join(LATEX.get(c, c) for c in text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int], kind: str) -> str:
    from tabulate import tabulate

    sides = ["right" if i in right else "left" for i in range(len(head))]
    return tabulate(rows, head, kind, disable_numparse=True, colalign=sides if rows else None)


def wrapped(text: str) -> str:
    """The text with the lines that are wider than the terminal, or than COLUMNS says, broken between words."""
    width = shutil.get_terminal_size((UNLIMITED, 0)).columns
    return "\n".join(line if len(line) <= width else _wrapped(line, width) for line in text.split("\n"))


def folded(command: str, margin: int = 0) -> str:
    """A command to be typed, whose lines end in a backslash where the terminal has no room for it behind a `margin`."""
    room = shutil.get_terminal_size((UNLIMITED, 0)).columns - margin
    if len(command) <= room:
        return command
    first, *words = re.findall(r"""(?:\\.|'[^']*'|"(?:\\.|[^"])*"|[^\s\\])+""", command)
    lines = [first]
    for word in words:
        if len(lines[-1]) + len(word) + len("  \\") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(f"  {word}")
    return (" \\\n" + " " * margin).join(lines)


def _wrapped(line: str, width: int) -> str:
    margin = len(line) - len(line.lstrip())
    label = re.match(r"\s*\S+\s{2,}", line)  # a label, then text
    column = label.end() if label and label.end() < width / 2 else margin + 2
    indent = " " * column + "# " * (" # " in line)  # the lines of a comment keep their #
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
