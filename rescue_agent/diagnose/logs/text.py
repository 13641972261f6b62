# SPDX-License-Identifier: GPL-3.0-or-later
"""Raw bytes of a log made fit for matching: no escape sequences, no control characters, plain lines."""

from __future__ import annotations

import codecs
import re

import msgspec

SOFT = b"\x0b"
"""Ends a line for matching without being one for counting: a lone carriage return, a cursor that jumps."""

_JUMP = re.compile(rb"\x1b\[\d*;?\d*[Hf]|\x1b[EDM]|\x1bc")
_ESCAPE = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]?"  # CSI (ECMA-48 5.4)
    rb"|\][^\x07\x1b]{0,256}(?:\x07|\x1b\\)?"  # OSC, with a bound for one that never ends
    rb"|[PX^_][^\x1b]{0,256}(?:\x1b\\)?"
    rb"|[ -/]*[0-~]?)"
)
_CONTROLS = bytes(c for c in range(32) if c not in b"\t\n\v") + b"\x7f"
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}

_PREFIX = re.compile(
    r"\s*(?:"
    r"<\d{1,3}>"  # priority, as in pstore and /dev/kmsg
    r"|\[\s*\d+\.\d+\s*\](?:\s*\[\s*[TC]\d+\s*\])?"  # printk.time, and the caller's thread
    r"|\[(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) [^\]]{10,30}\]"  # dmesg -T
    r"|(?:kern|daemon|user|syslog|auth)\s*:\s*\w+\s*:"  # dmesg -x
    r"|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\s+\d{1,2} \d\d:\d\d:\d\d(?:\.\d+)?"
    r"(?: [\w.@-]+)? [\w./@:~()-]{1,64}?(?:\[\d+\])?:(?=\s)"  # RFC 3164, journalctl -o short
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*(?: [\w.@-]+ [\w./@:~()-]{1,64}?(?:\[\d+\])?:(?=\s))?"  # RFC 5424
    r"|MESSAGE="  # journalctl -o export
    r")"
)
MAX_MESSAGE = 2000


class Decoder:
    """Turns the pieces of a log into plain ASCII-compatible bytes, one piece at a time."""

    def __init__(self) -> None:
        self._wide: codecs.IncrementalDecoder | None = None
        self._begun = False
        self._held = b""

    def clean(self, piece: bytes, *, final: bool = False) -> bytes:
        """Return the next piece: UTF-8 or what stood there, lines ended by LF, nothing that moves a cursor.

        An escape sequence or a CR LF that a piece cuts in two is held back for the next one.
        """
        if not self._begun and piece:
            self._begun = True
            self._wide = _wide_decoder(piece)
        if self._wide is not None:
            piece = self._wide.decode(piece, final).encode("utf-8", "replace")
        piece, self._held = self._held + piece, b""
        if not final:
            cut = piece.rfind(b"\x1b", -300)
            if cut < 0 and piece.endswith(b"\r"):
                cut = len(piece) - 1
            if cut >= 0:
                piece, self._held = piece[:cut], piece[cut:]
        if b"\x1b" in piece:
            piece = _ESCAPE.sub(b"", _JUMP.sub(SOFT, piece))
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", SOFT)
        return piece.translate(None, _CONTROLS)


def _wide_decoder(piece: bytes) -> codecs.IncrementalDecoder | None:
    """Return a decoder when the text is UTF-16, by its mark or by where its zero bytes stand."""
    name = _UTF16.get(piece[:2], "")
    if not name:
        head = piece[:4096]
        odd, even = head[1::2], head[::2]
        if len(head) >= 16 and odd.count(0) > 0.9 * len(odd):
            name = "utf-16-le"
        elif len(head) >= 16 and even.count(0) > 0.9 * len(even):
            name = "utf-16-be"
    return codecs.getincrementaldecoder(name)("replace") if name else None


def message_of(line: str) -> str:
    """Return what a line says, without its time stamps, host and program, at most 2000 characters.

    A line of ``journalctl -o json`` gives its MESSAGE, also when that is a list of bytes.
    """
    if line.startswith("{") and '"MESSAGE"' in line:
        line = _from_json(line)
    line = line[:MAX_MESSAGE]
    for _ in range(4):
        match = _PREFIX.match(line)
        if match is None or match.end() == 0:
            break
        line = line[match.end() :]
    return line.strip()


def _from_json(line: str) -> str:
    try:
        entry = msgspec.json.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return line
    message = entry.get("MESSAGE") if isinstance(entry, dict) else None
    if isinstance(message, str):
        return message
    if isinstance(message, list) and all(isinstance(b, int) and 0 <= b < 256 for b in message):
        decoder = Decoder()
        return decoder.clean(bytes(message), final=True).decode("utf-8", "backslashreplace")
    return line
