"""Bad input made by Hypothesis: how much of it, what a command makes of it, and what counts as a good end."""

import contextlib
import io
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from aavae.errors import UserError
from aavae.runtime import exits

EXAMPLES = int(os.environ.get("AAVAE_FAULTS", "200"))  # of all tests together; `make test-faults` asks for more
SHORT = EXAMPLES <= 1000
PATIENCE = 60  # seconds after which something hangs


def examples(share: float) -> settings:
    """A share of the examples for one test: always the same ones in the short form, others each time in the long."""
    return settings(
        max_examples=max(2, round(share * EXAMPLES)),
        deadline=None,
        database=None,  # what fails is kept as an @example
        derandomize=SHORT,
        print_blob=not SHORT,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Fail, rather than hang."""

    def late(*_):
        raise AssertionError(f"nothing came of it in {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def command(name: str, work: Callable[[], int], words: list[str], tried: Counter, good=(0,)) -> tuple[int, str, str]:
    """What `name WORDS` ends with in this process: a `good` code, or 2 with one sentence; exceptions pass through."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [name, *words]
    try:
        with in_time(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = exits.run(name, work)
    finally:
        sys.argv = argv
    said = err.getvalue()
    assert code in (*good, 2) and "Traceback" not in said, (code, said)
    if code == 2 and 2 not in good:
        assert said.startswith(f"{name}: ") and said.count("\n") == 1 and len(said) < 30_000, said
    tried["refused" if code == 2 else "done"] += 1
    return code, out.getvalue(), said


def refusal(read: Callable[[], object], tried: Counter) -> object:
    """What `read` gives, or the sentence with which it refuses; other exceptions pass through."""
    try:
        with in_time():
            found = read()
    except UserError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 30_000, str(error)
        tried["refused"] += 1
        return error
    tried["done"] += 1
    return found


# ---- Strategies ---------------------------------------------------------------------------------------------------

LETTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
TEXTS = st.text(LETTERS, max_size=12)
ODD = st.sampled_from(
    ["", " ", "null", "true", "???", "nan", "-inf", "1e999", "9" * 5000, "-0", "0x10", "1_000", "010", "1e-3", "é", "𝔘",
     "\u202e", "\x1b[31m", "a\nb", "\t", "{", "[", "]", "'", '"', "\\", "${", "${}", "${seed}", "${no.such}", "${.x}",
     "${oc.env:NO_SUCH}", "${oc.env:HOME}", "${oc.decode:'[1'}", "${oc.create:{a: 1}}", "${now:%Y}",
     "${hydra:runtime.cwd}", "${aavae_identity:}", "${aavae_sweep:}", "${oc.select:loss}", "${oc.dict.keys:loss}",
     "${loss}", "${a:${b:${c:}}}", "!!python/name:os.system", "&a [*a]", "*a", "<<", "%", "- -", "? ", ": ", "# x",
     "..", "/", "~", "\udc80"]
)  # fmt: skip
NUMBERS = st.one_of(st.integers(-5, 5), st.integers(), st.floats(), st.just(10**400))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, ODD)
DATA = st.recursive(
    SCALARS, lambda some: st.lists(some, max_size=3) | st.dictionaries(TEXTS | ODD, some, max_size=3), max_leaves=8
)


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """The bytes with one to four edits."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from([1, 1, 1, 2, 4, 8, 64, 1000, 10**9]))
        kind = draw(st.sampled_from(["flip", "put", "insert", "cut", "end", "move"]))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
        elif kind in ("put", "insert"):
            new = draw(
                st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8), b"{", b"}", b"[", b'"', b"1e999"])
            )
            data = data[:at] + new + data[at + (len(new) if kind == "put" else 0) :]
        elif kind == "cut":
            data = data[:at] + data[at + length :]
        elif kind == "end":
            data = data[:at]
        else:
            to = draw(st.integers(0, len(data)))
            data = data[:to] + data[at : at + length] + data[to:]
    return data
