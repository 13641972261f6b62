# SPDX-License-Identifier: GPL-3.0-or-later
"""The base of every model type, and the one way they become JSON and come back.

A *document* is a model with a ``schema`` field that stands first, such as
``rescue-agent/facts/1``. The number grows when a reader of the old form would misread the new one.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from rescue_agent.errors import DocumentError


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frozen value; equal when all its fields are equal; unknown fields are refused on decoding."""


D = TypeVar("D", bound=Model)


def encode(document: Model, *, indent: int = 2) -> bytes:
    """Return the document as JSON in UTF-8, ended by a newline. ``indent=0``: on one line."""
    data = msgspec.json.encode(document)
    if indent:
        data = msgspec.json.format(data, indent=indent)
    return data + b"\n"


def decode(data: bytes, kind: type[D]) -> D:
    """Return the document in ``data``; raise DocumentError when it is not a whole ``kind``."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DocumentError(
            f"not a {kind.__name__.lower()} document that this agent can read: {error}",
            hint="it may be cut off, edited by hand, or written by another version",
        ) from error


def json_schema(kind: type[Model]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a document type."""
    return msgspec.json.schema(kind)


def printable(text: str) -> str:
    """Return text from a disk with every control, format and surrogate character made visible.

    Escape sequences, newlines and right-to-left marks in labels and logs must never reach a
    terminal raw; a reader still sees that they were there (``\\x1b``).
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
