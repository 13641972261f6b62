# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs that the person names: opened, unpacked, and handed on in pieces. Memory stays bounded.

Whoever reads for signatures is given from above (``Scan``): a probe brings bytes, it judges nothing.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Protocol, cast

from backports import zstd

from rescue_agent.errors import UsageError
from rescue_agent.model.document import printable
from rescue_agent.model.logs import Log, LogKind
from rescue_agent.model.queries import human_size
from rescue_agent.model.run import Progressed

ProgressSink = Callable[[Progressed], None]

STDIN = "-"
PIECE_BYTES = 1 << 20
LIMIT_BYTES = 2 << 30
"""So much of a log is read, unpacked; a log that is longer says so."""

TOLD_EVERY_BYTES = 16 << 20
_XZ_MEMORY = 96 << 20
"""xz -9 needs 65 MiB to unpack (xz(1)); what asks for more is refused."""
_ZSTD_WINDOW_LOG = 26
"""zstd -19 needs a window of 8 MiB to unpack, ``--ultra -22`` 128 MiB (zstd(1)): up to 64 MiB is given."""


class Scanner(Protocol):
    """Reads one log for what it says."""

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the log."""

    def finish(self, *, source: str, kind: LogKind = "file", system: str = "", problem: str = "") -> Log:
        """Return what was found in all of it."""


def silent(_: Progressed) -> None:
    """Take progress and tell nobody."""


Scan = Callable[[], Scanner]
"""Makes a scanner for one more log."""


def read_log(scan: Scan, path: str, *, progress: ProgressSink) -> Log:
    """Return what the log at ``path`` says; ``-`` is standard input.

    Packed logs (gzip, bzip2, xz, lzma, zstd) are unpacked on the way. What is cut off or damaged is
    read as far as it goes, and ``problem`` says so. Raises UsageError when there is nothing to read.
    """
    if path == STDIN:
        return scan_stream(scan, sys.stdin.buffer, source="standard input", progress=progress)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a block device; name it as DISK"
            raise UsageError(f"{printable(path)} is {what}, not a log", hint="--log takes a saved log file")
        with open(path, "rb") as file:
            return scan_stream(scan, file, source=path, progress=progress)
    except OSError as error:
        raise UsageError(
            f"{printable(path)}: {error.strerror}", hint="--log takes a saved log file"
        ) from error


def scan_stream(
    scan: Scan,
    stream: IO[bytes],
    *,
    source: str,
    kind: LogKind = "file",
    system: str = "",
    limit_bytes: int | None = None,
    progress: ProgressSink = silent,
) -> Log:
    """Return what the first ``limit_bytes`` (LIMIT_BYTES) of a stream say, unpacked if it is packed."""
    limit = limit_bytes or LIMIT_BYTES
    scanner = scan()
    problem = ""
    size = 0
    blank = True
    with unpacked(stream) as plain:
        try:
            for piece in _pieces(plain):
                if blank and size == 0:
                    _refuse_other_files(piece, source)
                blank = blank and not piece.strip(b"\0 \t\r\n")
                size += len(piece)
                scanner.feed(piece)
                if size % TOLD_EVERY_BYTES < len(piece) and size > TOLD_EVERY_BYTES:
                    progress(Progressed(task="reading logs", detail=f"{source}: {size >> 20} MiB"))
                if size >= limit:
                    problem = f"only the first {human_size(limit)} were read"
                    break
        except (EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, gzip.BadGzipFile) as error:
            problem = f"it is cut off or damaged after {size} unpacked bytes: {printable(str(error))}"
        except OSError as error:
            reason = error.strerror or str(error)  # bz2 raises a plain OSError for damaged data
            problem = f"it could not be read after {size} bytes: {printable(reason)}"
    if blank and not problem:
        raise UsageError(f"{printable(source)} holds no text", hint="was the log saved at all?")
    return scanner.finish(source=source, kind=kind, system=system, problem=problem)


_OTHER_FILES = (
    # magic, what it is, what reads it
    (b"\x7fELF", "an ELF file", "a memory dump is named with --vmcore"),
    (b"KDUMP   ", "a kdump-compressed memory dump", "name it with --vmcore"),
    (b"makedumpfile\0", "a flattened memory dump", "name it with --vmcore"),
    (
        b"LPKSHHRH",
        "a binary journal",
        "print it first: journalctl --file FILE > journal.txt",
    ),
)


def _refuse_other_files(head: bytes, source: str) -> None:
    """Raise UsageError for what is no text: silence about it would look like health."""
    for magic, what, hint in _OTHER_FILES:
        if head.startswith(magic):
            raise UsageError(f"{printable(source)} is {what}, not a log", hint=hint)


def _pieces(plain: IO[bytes]) -> Iterator[bytes]:
    """Yield what can be read, in pieces of some size; also what came before an error."""
    parts: list[bytes] = []
    size = 0
    try:
        while part := _some_of(plain):
            parts.append(part)
            size += len(part)
            if size >= PIECE_BYTES // 4:
                yield b"".join(parts)
                parts, size = [], 0
    except Exception:
        yield b"".join(parts)
        raise
    yield b"".join(parts)


def _some_of(plain: IO[bytes]) -> bytes:
    """Return the next bytes as they come: a read of a fixed size would lose those before an error."""
    return cast(io.BufferedReader, plain).read1(PIECE_BYTES)


@contextmanager
def unpacked(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """Give the plain bytes of a stream that may be packed; the kind is told by its first bytes."""
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(_Raw(stream))
    head = buffered.peek(6)[:6]
    if head.startswith(b"\x1f\x8b"):
        yield cast(IO[bytes], gzip.GzipFile(fileobj=buffered))
    elif head.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00")):
        yield io.BufferedReader(_Packed(buffered, _make_xz))
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        yield io.BufferedReader(_Packed(buffered, _make_zstd))
    elif head.startswith(b"BZh"):
        with bz2.BZ2File(buffered) as plain:
            yield plain
    else:
        yield buffered


class _Decompressor(Protocol):
    """What lzma and zstd have in common (bz2 and zlib differ)."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Packed(io.RawIOBase):
    """Packed streams, one after the other, unpacked with a bound on the memory that they may ask for."""

    def __init__(self, stream: IO[bytes], make: Callable[[], _Decompressor]) -> None:
        self._stream = stream
        self._make = make
        self._decompressor = make()
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        while not self._ended:
            packed = b""
            if self._decompressor.eof:
                packed = (self._decompressor.unused_data or self._stream.read(PIECE_BYTES)).lstrip(b"\0")
                self._ended = not packed
                self._decompressor = self._make()
            elif self._decompressor.needs_input:
                packed = self._stream.read(PIECE_BYTES)
                if not packed:
                    raise EOFError("the packed data ends too early")
            data = b"" if self._ended else self._decompressor.decompress(packed, len(view))
            if data:
                view[: len(data)] = data
                return len(data)
        return 0


def _make_xz() -> _Decompressor:
    return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


def _make_zstd() -> _Decompressor:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})


class _Raw(io.RawIOBase):
    """A stream that only reads, as the raw side of a buffer."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self._stream.read(len(view))
        view[: len(data)] = data
        return len(data)
