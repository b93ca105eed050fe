"""Passwords, keys and tokens are written nowhere: neither into files of a run nor on dashboards nor on the screen.

Which texts they are is known from the names of settings and of variables in the environment, and from addresses.
"""

import os
import re
from collections.abc import Iterable
from typing import Any

HIDDEN = "***"
SHORTEST = 8  # characters of a text that is hidden wherever it stands; shorter ones may be anything
_NAME = r"(?:api|access|account|private|secret)_?key(?:_id)?|secret|pass(?:word|wd|phrase)|token|credentials?"
_KEY = rf"(?:[\w.@/+~-]*[._-])?(?:{_NAME})"
_OPEN = r"(?!\$\{|\*\*\*|null\b|true\b|false\b)"  # what need not be hidden
_VALUE = rf"""{_OPEN}(?:'(?:[^']|'')*'|"(?:[^"\\]|\\.)*"|[^\s,&}}'"]+)"""
_NAMED = re.compile(rf"(?:.*[._-])?(?:{_NAME})", re.IGNORECASE)
_VARIABLE = re.compile(rf".*(?:{_NAME})", re.IGNORECASE)  # PGPASSWORD too
_ADDRESS = re.compile(r"(?<=://)[^/\s'\"]+@")
_ASSIGNED = re.compile(rf"(?<![\w.-])({_KEY}=){_VALUE}", re.IGNORECASE)
_YAML = re.compile(rf"^(\s*['\"]?{_KEY}['\"]?:\s+){_OPEN}\S.*", re.IGNORECASE | re.MULTILINE)
_INLINE = re.compile(rf"([{{,]\s*['\"]?{_KEY}['\"]?:\s*){_VALUE}", re.IGNORECASE)
_OVERRIDE = re.compile(r"([^=\s]+)=(.+)", re.DOTALL)
_known: set[str] = set()  # in this process


def is_named(key: str) -> bool:
    """Whether what a setting of this name holds is a secret."""
    return bool(_NAMED.fullmatch(key))


def learn(data: Any, secret: bool = False) -> None:
    """Remember the secrets in plain data or overrides: from then on they are hidden wherever they stand."""
    if isinstance(data, dict):
        for key, value in data.items():
            learn(value, secret or is_named(str(key)))
    elif isinstance(data, list | tuple):
        for value in data:
            learn(value, secret)
    elif isinstance(data, str) and not secret:
        if (override := _OVERRIDE.fullmatch(data)) and is_named(override[1]):
            learn(override[2].strip("'\""), secret=True)
    elif secret and len(text := str(data)) >= SHORTEST and not text.startswith("${"):
        _known.add(text)


def scrubbed(text: str) -> str:
    """The text with `***` for the secrets in it: values of settings, names and passwords in addresses, what was
    learned, and what the environment holds."""
    for secret in sorted({*_known, *_of_environment()}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    if "://" in text:
        text = _ADDRESS.sub(f"{HIDDEN}@", text)
    for pattern in (_ASSIGNED, _YAML, _INLINE):
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text


def _of_environment() -> Iterable[str]:
    return (value for name, value in os.environ.items() if len(value) >= SHORTEST and _VARIABLE.fullmatch(name))


def hidden(data: Any, secret: bool = False) -> Any:
    """Plain data with `***` for the secrets in it; an override `key=value` is known as one."""
    if isinstance(data, dict):
        return {key: hidden(value, secret or is_named(str(key))) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(hidden(value, secret) for value in data)
    if isinstance(data, str):
        override = _OVERRIDE.fullmatch(data)
        if override and is_named(override[1]) and not override[2].startswith("${"):
            return f"{override[1]}={HIDDEN}"
        return HIDDEN if secret and data and not data.startswith("${") else scrubbed(data)
    return HIDDEN if secret and data is not None and not isinstance(data, bool) else data
