"""Numbers before their nouns, names that fit, sentences in the width of a terminal, and Markdown tables."""

import hashlib
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence

UNLIMITED = 100_000  # columns of a file or a pipe


def count(n: float, noun: str, spec: str = ",") -> str:
    """A number in the format `spec` and its noun, which has an `s` unless there is one: `1 epoch`, `1,297 images`."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{n:{spec}} {noun}{'' if n == 1 else plural}"


def epochs(n: float) -> str:
    """A number of epochs, which may end within one: `0.11 epochs`."""
    return count(round(n, 2), "epoch", ".10g")


def shortened(name: str, most: int = 128) -> str:
    """A name of at most so many characters; a longer one ends in eight digits of its SHA-256, and stays unique."""
    if len(name) <= most:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{name[: most - len(digest) - 1]}…{digest}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table, the columns `right` aligned to the right."""
    from tabulate import tabulate

    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    sides = ["right" if i in right else "left" for i in range(len(head))]
    return tabulate(cells[1:], cells[0], "pipe", disable_numparse=True, colalign=sides if cells[1:] else None)


def wrapped(text: str) -> str:
    """The text with the lines that are wider than the terminal, or than COLUMNS says, broken between words."""
    width = shutil.get_terminal_size((UNLIMITED, 0)).columns
    return "\n".join(line if len(line) <= width else _wrapped(line, width) for line in text.split("\n"))


def _wrapped(line: str, width: int) -> str:
    margin = len(line) - len(line.lstrip())
    label = re.match(r"\s*\S+\s{2,}", line)  # and what is said of it
    column = label.end() if label and label.end() < width / 2 else margin + 2
    indent = " " * column + "# " * (" # " in line)  # which a comment goes on with
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
