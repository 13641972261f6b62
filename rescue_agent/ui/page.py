# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain text for people: 80 columns, headings, hanging indents, commands that can be pasted."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Mapping
from typing import Literal

from rescue_agent.model.document import printable

COLUMNS = 80
WIDEST_LABEL = 20
"""Text does not hang beside a label that is wider than this."""

Tone = Literal["", "bold", "bad", "warn", "good", "dim"]
_ANSI: dict[Tone, str] = {"bold": "1", "bad": "1;31", "warn": "33", "good": "32", "dim": "2"}
_IN_ASCII = str.maketrans({"├": "|", "└": "`", "─": "-", "│": "|", "→": ">", "…": "~"})


class Page:
    """Collects lines. Everything that is put on it is made safe to print.

    ``color``: with ANSI colours. ``encoding``: of the place where it will be shown; characters
    that it lacks are replaced (default: that of standard output).
    """

    def __init__(self, *, color: bool = False, encoding: str = "") -> None:
        self._lines: list[str] = []
        self._color = color
        self._encoding = encoding or getattr(sys.stdout, "encoding", "") or "ascii"

    def text(self) -> str:
        """Return the page, ended by one newline."""
        text = "\n".join(self._lines).strip("\n") + "\n"
        try:
            text.encode(self._encoding)
        except (UnicodeEncodeError, LookupError):
            text = text.translate(_IN_ASCII).encode("ascii", "backslashreplace").decode("ascii")
        return text

    def blank(self) -> None:
        """Put an empty line, never two."""
        if self._lines and self._lines[-1]:
            self._lines.append("")

    def heading(self, text: str) -> None:
        """Put a heading with an empty line before it."""
        self.blank()
        self._lines.append(self._paint(printable(text), "bold"))

    def put(self, text: str, *, indent: int = 0, label: str = "", tone: Tone = "") -> None:
        """Put a paragraph. ``label`` stands before it in its own colour; the text hangs beside it."""
        first = " " * indent + (printable(label) + " " if label else "")
        lines = textwrap.wrap(
            printable(text),
            COLUMNS,
            initial_indent=first,
            subsequent_indent=" " * (len(first) if len(label) <= WIDEST_LABEL else indent + 4),
            break_on_hyphens=False,
        ) or [first.rstrip()]
        if tone:
            head, rest = lines[0][:indent], lines[0][indent:]
            name = printable(label) if label else rest
            lines[0] = head + self._paint(name, tone) + rest[len(name) :]
        self._lines += lines

    def field(self, label: str, text: str, *, indent: int = 2, width: int = 12) -> None:
        """Put a paragraph beside a label of fixed width; nothing when there is no text."""
        if text:
            self.put(text, indent=indent, label=label.ljust(width - 1))

    def command(self, line: str, *, indent: int = 4, short: Mapping[str, str] | None = None) -> None:
        """Put a shell line, folded so that it can still be pasted. ``short``: paths and the variables
        that stand for them."""
        for path, name in (short or {}).items():
            line = with_variable(line, path, name)
        if "\n" in line:  # inside quotes: an indent would become part of the word
            self._lines += [_shown_command(part) for part in line.split("\n")]
            return
        for piece in folded_command(_shown_command(line), COLUMNS - indent):
            self._lines.append(" " * indent + piece)

    def _paint(self, text: str, tone: Tone) -> str:
        return f"\x1b[{_ANSI[tone]}m{text}\x1b[0m" if self._color and tone else text


def _shown_command(line: str) -> str:
    """A tab is the one control character in a command that no terminal obeys harmfully."""
    return "\t".join(printable(piece) for piece in line.split("\t"))


def with_variable(line: str, path: str, name: str) -> str:
    """Return a shell line in which ``$name`` stands for ``path`` and what lies below it, where no
    quotes forbid it."""
    pieces = re.split(r"('[^']*')", line)
    pattern = re.compile(rf"(?<![^\s=\"]){re.escape(path)}(?=[/\s;\"]|$)")
    return "".join(piece if n % 2 else pattern.sub(f"${name}", piece) for n, piece in enumerate(pieces))


def folded_command(line: str, width: int) -> list[str]:
    """Return a shell line cut at spaces outside of quotes, each piece but the last ended by a
    backslash, so that a shell reads the same words. A single word may still be too long."""
    indent = line[: len(line) - len(line.lstrip(" "))]
    pieces: list[str] = []
    rest = line
    while len(rest) > width and (cut := _cut(rest, width - 2, len(indent) + (4 if pieces else 0))):
        pieces.append(rest[:cut].rstrip(" ") + " \\")
        rest = indent + "    " + rest[cut:].lstrip(" ")
    return [*pieces, rest]


def _cut(line: str, limit: int, start: int) -> int:
    """Return the last place at or before ``limit`` where the line may be cut, or the first after it; 0:
    none."""
    quoted, best, depth = "", 0, 0
    skip = False
    for at, char in enumerate(line):
        if skip:
            skip = False
        elif char == "\\" and quoted != "'":
            skip = True
        elif quoted == "'":
            quoted = "" if char == "'" else quoted
        elif char == '"':
            quoted = "" if quoted else '"'
        elif char == "'" and not quoted:
            quoted = "'"
        elif char == "(" and not quoted:
            depth += 1
        elif char == ")" and depth and not quoted:
            depth -= 1
        elif char == " " and not quoted and not depth and at > start and line[at - 1] != " ":
            if at > limit and best:
                return best
            best = at
            if at > limit:
                return best
    return best if best and len(line) > limit else 0


def human_size(size_bytes: int) -> str:
    """Return a size with three digits at most, in powers of 1024."""
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1000 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("the last unit takes every size")


def human_duration(seconds: float) -> str:
    """Return a duration in the unit that a person would choose."""
    if seconds < 1:
        return "less than 1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return ``1 file``, ``2 files``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
