"""What a command prints: on any console, and whether or not somebody reads it."""

import codecs
import contextlib
import errno
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import TextIO

from aavae.runtime import secrets
from aavae.runtime.words import wrapped

PLAIN = {
    **{"²": "^2", "³": "^3", "×": "x", "±": "+/-", "·": "*", "−": "-", "–": "-", "—": "-", "…": "...", "→": "->"},
    **{"≥": ">=", "≤": "<=", "½": "1/2", "√": "sqrt", "‖": "||", "∞": "inf", "•": "*", "█": "#", "│": "|", "─": "-"},
    **{"━": "-", "α": "alpha", "β": "beta", "ε": "epsilon", "λ": "lambda", "μ": "mu", "µ": "mu", "σ": "sigma"},
}
GONE = (errno.EPIPE, errno.EIO, errno.ENXIO)  # nobody reads on (head), or the terminal was closed


def plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """A codec's error handler: what stands for characters that the encoding does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    if all("\udc80" <= c <= "\udcff" for c in missing):  # a file's name in another encoding: its own bytes
        return bytes(ord(c) - 0xDC00 for c in missing), error.end
    return "".join(PLAIN.get(c) or _ascii(c) for c in missing), error.end


def _ascii(character: str) -> str:
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


codecs.register_error("plain", plain)


def spelt(text: str) -> str:
    """The text in the letters that stdout has: columns are as wide as what will stand in them."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "plain").decode(encoding, "surrogateescape")


def complain(text: str) -> None:
    """Print a line on stderr: broken between words on a terminal, whole elsewhere."""
    print(wrapped(text) if sys.stderr.isatty() else text, file=sys.stderr)


class LenientStream:
    """The text stream `stream`, but that it goes on where nothing can be written any more: `lost` says why."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.lost: OSError | None = None
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write it without secrets, or drop it."""
        if self.lost is None:
            with self._losing():
                self._stream.write(secrets.scrubbed(text))
        return len(text)

    def writelines(self, lines) -> None:
        """Write them, or drop them."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Hand on what was written."""
        if self.lost is None:
            with self._losing():
                self._stream.flush()

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = error
            # A stream may have no descriptor; one that has is given a place for what is still in its buffer.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


@contextlib.contextmanager
def lenient() -> Iterator[LenientStream]:
    """Within, stdout (which is given) and stderr are an `LenientStream`."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        sys.stdout, sys.stderr = (LenientStream(stream or nowhere) for stream in before)  # None: it was closed
        try:
            yield sys.stdout
        finally:
            sys.stdout.flush()
            sys.stdout, sys.stderr = before
