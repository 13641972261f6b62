# SPDX-License-Identifier: GPL-3.0-or-later
"""Dumps that somebody compressed as a whole: xz and gzip are unpacked into the run's folder."""

from __future__ import annotations

import gzip
import lzma
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rescue_agent.errors import UsageError
from rescue_agent.probe.vmcore.source import Check, Source

MAGIC = {b"\xfd7zXZ\0": "xz", b"\x1f\x8b": "gzip"}
KEEP_FREE_BYTES = 256 << 20
MAX_BYTES = 1 << 44
_PIECE = 1 << 20
_LZMA_MEMORY = 100 << 20
"""xz -9 needs 65 MiB; more only what somebody made on purpose."""


def packed_with(head: bytes) -> str:
    """Return ``xz``, ``gzip`` or an empty string."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), "")


def unpack(path: Path, method: str, target: Path, check: Check) -> None:
    """Unpack a compressed dump; runs of zeros become holes.

    Raises UsageError when it is damaged, or when there is no room for it.
    """
    try:
        with open(path, "rb") as packed:
            pieces = _xz_pieces(packed) if method == "xz" else _gzip_pieces(packed)
            _write(pieces, target, check, f"{path}, unpacked,")
    except (lzma.LZMAError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(
            f"{path}: the {method} file is damaged or cut off: {error}", hint="copy the file again"
        ) from error


def copy(source: Source, target: Path, check: Check, patch: tuple[int, bytes], name: str) -> None:
    """Write the dump that a source stands for to a plain file, with some bytes replaced."""
    offsets = range(0, source.size, _PIECE)
    _write((source.read(offset, _PIECE) for offset in offsets), target, check, f"{name}, rearranged,")
    with open(target, "r+b") as out:
        out.seek(patch[0])
        out.write(patch[1])


def _write(pieces: Iterator[bytes], target: Path, check: Check, what: str) -> None:
    size = 0
    with open(target, "wb") as out:
        for piece in pieces:
            check()
            size += len(piece)
            if size > MAX_BYTES or shutil.disk_usage(target.parent).free < KEEP_FREE_BYTES:
                raise UsageError(
                    f"{what} does not fit into {target.parent}",
                    hint="make room there, or unpack it elsewhere and name the result",
                )
            if any(piece):
                out.write(piece)
            else:
                out.seek(size)
        out.truncate(size)


def _xz_pieces(packed: IO[bytes]) -> Iterator[bytes]:
    """Yield the contents of the streams of an xz file; lzma.open knows no bound of memory."""
    data = b""
    while data := data.lstrip(b"\0") or packed.read(_PIECE):
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY)
        while not stream.eof:
            if stream.needs_input and not data:
                data = packed.read(_PIECE)
                if not data:
                    raise EOFError("it ends within a stream")
            piece = stream.decompress(data, _PIECE)
            data = b""
            if piece:
                yield piece
        data = stream.unused_data


def _gzip_pieces(packed: IO[bytes]) -> Iterator[bytes]:
    with gzip.open(packed) as unpacked:
        while piece := unpacked.read(_PIECE):
            yield piece


def free_bytes(folder: Path) -> int:
    """Return the room in a folder that may be filled."""
    return max(shutil.disk_usage(folder).free - KEEP_FREE_BYTES, 0)
