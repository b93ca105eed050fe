"""Digests inside the files they are of, where no other reader of these files sees them.

A zip, which a checkpoint is, carries one in its comment; a JSON text carries one in the blank line after its end.
"""

import hashlib
import zipfile
from typing import IO

MARK = b"aavae blake2b:"
COMMENT = len(MARK) + 64  # bytes
END = b"PK\5\6"  # of a zip: 22 bytes that begin so, and its comment, whose length is the last two of the 22
PIECE = 2**20  # bytes that are read at once
BLANK = 128  # spaces and tabs, one for each bit


# ---- Zips ---------------------------------------------------------------------------------------------------------


class SealedZip:
    """Passes on to `handle` what a writer of a zip writes; `seal` adds the comment that says the digest.

    It is BLAKE2b of all bytes before the length of the comment.
    """

    def __init__(self, handle: IO[bytes]):
        self._handle, self._hash, self._held = handle, hashlib.blake2b(digest_size=32), b""

    def write(self, data: bytes | memoryview) -> int:
        """Write all but the last two bytes of what there is so far: they may be the length of the comment."""
        ends = self._held + bytes(data[-2:])
        for part in (ends[:-2], data[:-2]):
            self._hash.update(part)
            self._handle.write(part)
        self._held = ends[-2:]
        return len(data)

    def flush(self) -> None:
        """Flush what was passed on."""
        self._handle.flush()

    def seal(self) -> None:
        """Write the comment of a zip that is complete and has none."""
        assert self._held == b"\0\0"
        self._handle.write(COMMENT.to_bytes(2, "little") + MARK + self._hash.hexdigest().encode())


def verify_zip(handle: IO[bytes]) -> None:
    """Raise zipfile.BadZipFile unless all bytes are those that were written.

    Files of torch and of earlier versions have no digest, but a CRC-32 of each member; nor may others have a comment.
    """
    said = _said(handle)
    if said is not None and said != _digest(handle, COMMENT + 2):
        raise zipfile.BadZipFile("a wrong digest")
    handle.seek(0)
    with zipfile.ZipFile(handle) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise zipfile.BadZipFile("two members of one name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):  # which torch never writes
            raise zipfile.BadZipFile("a compressed member")
        if said is None and archive.testzip() is not None:
            raise zipfile.BadZipFile("a wrong checksum")
    handle.seek(0)


def _said(handle: IO[bytes]) -> bytes | None:
    """The digest in the comment of a zip; None if it has no comment. Raises BadZipFile for another comment."""
    length = handle.seek(0, 2)
    handle.seek(max(0, length - 22 - COMMENT))
    end = handle.read()
    if end[-22:].startswith(END) and end.endswith(b"\0\0"):
        return None
    if not end.startswith(END) or end[20:22] != COMMENT.to_bytes(2, "little") or not end[22:].startswith(MARK):
        raise zipfile.BadZipFile("no end, or a strange comment")
    return end[22 + len(MARK) :]


def _digest(handle: IO[bytes], without: int) -> bytes:
    left, found = handle.seek(0, 2) - without, hashlib.blake2b(digest_size=32)
    handle.seek(0)
    while left > 0 and (piece := handle.read(min(left, PIECE))):
        found.update(piece)
        left -= len(piece)
    return found.hexdigest().encode()


# ---- JSON ---------------------------------------------------------------------------------------------------------


def seal_json(text: str) -> bytes:
    """A JSON text with a blank last line that is a digest of it: a space stands for 0, a tab for 1."""
    content = text.encode() + b"\n"
    return content + _blank(content) + b"\n"


def unseal_json(data: bytes) -> str:
    """The text, once its digest is seen to be right; one that others have written has none.

    Raises ValueError where it is wrong, and for what is no text.
    """
    text = data.rstrip(b" \t\r\n")
    end = data[len(text) :]
    if b" " in end or b"\t" in end:
        content = data[: -BLANK - 1]
        if not content.endswith(b"\n") or data[len(content) :] != _blank(content) + b"\n":
            raise ValueError("its content is not what the digest in its blank last line says")
    return text.decode()


def _blank(content: bytes) -> bytes:
    bits = int.from_bytes(hashlib.blake2b(content, digest_size=BLANK // 8).digest())
    return f"{bits:0{BLANK}b}".translate({ord("0"): " ", ord("1"): "\t"}).encode()
