# SPDX-License-Identifier: GPL-3.0-or-later
"""One pass over a log of any size: which signatures match which lines, boot by boot.

An Aho-Corasick automaton (ahocorasick_rs) finds the literals of all signatures at once; only lines
with such a literal are looked at further. Memory is bounded whatever the log holds.
"""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import ahocorasick_rs
import msgspec

from rescue_agent.diagnose.logs.signature import Signature, compile_patterns, literals_of
from rescue_agent.diagnose.logs.text import SOFT, Decoder, message_of
from rescue_agent.model.document import printable
from rescue_agent.model.logs import Boot, Log, LogHit, LogKind

BOOTS_KEPT = 8
VALUES_KEPT = 12
"""So many different lines of one signature are kept for one boot: the first ones, and the last."""
LINES_LIMIT = 20_000
"""After so many lines that may be of one signature, further ones of that boot are passed over."""
EXCERPT_CHARS = 300
MATCH_SECONDS = 120.0
"""So long all matching of one log may take; only a log made to be slow comes near it."""
_REACH_BYTES = 8192
"""So far to each side of a literal the ends of its line are looked for; longer lines are cut."""
_BEFORE_BYTES, _AFTER_BYTES = 400, 1500
"""So much of a long line around its first literal is matched."""
_OVERLAP_BYTES = 256
"""No literal is longer; so much of a line without end is looked at twice."""

_JSON_BYTES = '"message":['
_BOUNDARIES = ("boot-journal", "boot-firmware", "boot-loader", "boot-kernel")
"""Marks of lines with which a machine starts, in the order in which one start passes them."""
_ONCE = ("boot-journal", "boot-kernel")
"""Those that stand only once in a start; of the others a start may bring several lines."""
_LINUX_VERSION = re.compile(r"Linux version (\S+)")


class Matcher:
    """The signatures, compiled once for any number of logs."""

    def __init__(self, signatures: Iterable[Signature]) -> None:
        self.signatures = tuple(signatures)
        self._limits = [_limit(s) for s in self.signatures]
        self._patterns: list[tuple[int, re.Pattern[str]]] = []
        """(number of the signature, pattern) of every pattern."""
        owners: dict[str, set[int]] = {}
        for number, signature in enumerate(self.signatures):
            for text, pattern in zip(signature.patterns, compile_patterns(signature), strict=True):
                for literal in literals_of(text):
                    owners.setdefault(literal, set()).add(len(self._patterns))
                self._patterns.append((number, pattern))
        self._literals = tuple(owners)
        self._owners = [tuple(sorted(owners[literal])) for literal in self._literals]
        self._automaton = ahocorasick_rs.BytesAhoCorasick(
            [literal.encode() for literal in (*self._literals, _JSON_BYTES)],
            matchkind=ahocorasick_rs.MatchKind.Standard,
            implementation=ahocorasick_rs.Implementation.DFA,
        )

    @property
    def literals(self) -> tuple[str, ...]:
        """The words that the prefilter looks for, in lower case."""
        return self._literals

    def find_literals(self, text: bytes) -> list[tuple[int, int, int]]:
        """Return (number of the literal, start, end) of every literal in ``text``, by their ends."""
        found: list[tuple[int, int, int]] = self._automaton.find_matches_as_indexes(
            text.lower(), overlapping=True
        )
        return found

    def matches(
        self, literals: Iterable[int], message: str, done: set[int]
    ) -> Iterator[tuple[int, re.Match[str] | None]]:
        """Yield (number, match or None) of every signature that these literals of a line may be of.

        Of a signature only the patterns are tried of which a literal was found. ``done``: signatures
        of which nothing more is wanted.
        """
        numbers = set(literals)
        if len(self._literals) in numbers:  # a MESSAGE that is a list of bytes: look at what it says
            numbers = {n for n, _, _ in self.find_literals(message.encode())}
        wanted: dict[int, list[re.Pattern[str]]] = {}
        for index in sorted({i for n in numbers if n < len(self._owners) for i in self._owners[n]}):
            number, pattern = self._patterns[index]
            wanted.setdefault(number, []).append(pattern)
        for number, patterns in wanted.items():
            if number not in done:
                yield number, next((m for p in patterns if (m := p.search(message))), None)

    def limit(self, number: int) -> int:
        """Return after how many matches of a signature in one boot nothing new can come of another."""
        return self._limits[number]

    def silenced(self, done: set[int]) -> set[int]:
        """Return the literals that none but the signatures in ``done`` want."""
        return {
            literal
            for literal, owners in enumerate(self._owners)
            if all(self._patterns[index][0] in done for index in owners)
        }


class _OpenBoot:
    """The boot that is being read."""

    def __init__(self, first_line: int) -> None:
        self.first_line = first_line
        self.kernel = ""
        self.stage = -1
        self.done: set[int] = set()
        """Signatures of which this boot needs no further line."""
        self.silenced: set[int] = set()
        """Literals that are passed over because of that."""
        self._hits: dict[int, dict[tuple[str, ...], LogHit]] = {}
        self._last: dict[int, LogHit] = {}
        self._tried: dict[int, int] = {}

    def tried(self, index: int) -> int:
        """Count one more line that may be of a signature; return how many there were."""
        count = self._tried[index] = self._tried.get(index, 0) + 1
        return count

    def add(self, index: int, hit: LogHit) -> None:
        known = self._hits.setdefault(index, {})
        key = tuple(hit.values.values())
        if key in known:
            known[key] = msgspec.structs.replace(known[key], count=known[key].count + 1)
        elif len(known) < VALUES_KEPT:
            known[key] = hit
        else:
            self._last[index] = hit

    def closed(self) -> Boot:
        hits = [hit for known in self._hits.values() for hit in known.values()]
        hits += self._last.values()
        return Boot(
            first_line=self.first_line,
            kernel=printable(self.kernel),
            hits=tuple(sorted(hits, key=lambda h: (h.line, h.signature))),
        )


class LogScanner:
    """Reads one log: ``feed`` its pieces in order, then ``finish``."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._decoder = Decoder()
        self._rest = b""
        self._again = 0
        self._line = 1
        self._size = 0
        self._boot = _OpenBoot(1)
        self._boots: deque[Boot] = deque(maxlen=BOOTS_KEPT)
        self._seen = 0
        self._matching_s = 0.0
        self._stopped_at = 0

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the log."""
        self._size += len(piece)
        text = self._rest + self._decoder.clean(piece)
        cut = keep = max(text.rfind(b"\n"), text.rfind(SOFT)) + 1
        if len(text) - cut > 2 * _REACH_BYTES:  # a line without end: keep what a literal may need
            cut = len(text) - _REACH_BYTES
            keep = cut - _OVERLAP_BYTES
        self._rest = text[keep:]
        self._scan(text[:cut], self._again)
        self._again = cut - keep

    def finish(self, *, source: str, kind: LogKind = "file", system: str = "", problem: str = "") -> Log:
        """Return what was found in all of it."""
        rest = self._rest + self._decoder.clean(b"", final=True)
        self._scan(rest + b"\n" if rest else b"", self._again)
        self._close_boot()
        return Log(
            source=printable(source),
            kind=kind,
            system=system,
            size_bytes=self._size,
            lines=self._line - 1,
            boots=tuple(self._boots),
            boots_seen=self._seen,
            problem=problem or self._too_slow(),
        )

    def _too_slow(self) -> str:
        if not self._stopped_at:
            return ""
        return f"it was not looked at from line {self._stopped_at} on: its lines take too long to match"

    def _close_boot(self) -> None:
        self._seen += 1
        boot = self._boot.closed()
        if boot.hits or not self._boots:
            self._boots.append(boot)

    def _scan(self, text: bytes, again: int) -> None:
        """Look at whole lines; what ends within the first ``again`` bytes was looked at before."""
        counted, line = 0, self._line
        start = end = first = -1
        literals: list[int] = []
        for number, at, to in self._matcher.find_literals(text):
            if to <= again or number in self._boot.silenced:
                continue
            if not start <= at < end or to > end:
                if literals:
                    self._take(literals, _worth(text, start, end, first), line)
                start, end = _line_around(text, at, to)
                first = at
                line += text.count(b"\n", counted, start)
                counted = start
                literals = []
            literals.append(number)
        if literals:
            self._take(literals, _worth(text, start, end, first), line)
        self._line = line + text.count(b"\n", counted)

    def _take(self, literals: Sequence[int], raw: bytes, line: int) -> None:
        if self._stopped_at:
            return
        begun = time.perf_counter()
        self._match(literals, raw, line)
        self._matching_s += time.perf_counter() - begun
        if self._matching_s > MATCH_SECONDS:
            self._stopped_at = line

    def _match(self, literals: Sequence[int], raw: bytes, line: int) -> None:
        text = raw.decode("utf-8", "backslashreplace")
        message = message_of(text)
        for index, match in self._matcher.matches(literals, message, self._boot.done):
            if self._boot.tried(index) >= (LINES_LIMIT if match is None else self._matcher.limit(index)):
                self._boot.done.add(index)
                self._boot.silenced = self._matcher.silenced(self._boot.done)
            if match is None:
                continue
            signature = self._matcher.signatures[index]
            self._pass_boundary(signature, line, message)
            excerpt = message if text.startswith("{") else text.strip()
            hit = LogHit(
                signature=signature.id,
                line=line,
                text=_excerpt(excerpt, match[0]),
                values={k: printable(v)[:EXCERPT_CHARS] for k, v in match.groupdict().items() if v},
            )
            self._boot.add(index, hit)

    def _pass_boundary(self, signature: Signature, line: int, message: str) -> None:
        for stage, mark in enumerate(_BOUNDARIES):
            if mark not in signature.marks:
                continue
            if self._boot.stage > stage or (self._boot.stage == stage and mark in _ONCE):
                self._close_boot()
                self._boot = _OpenBoot(line)
            self._boot.stage = stage
            if mark == "boot-kernel" and (version := _LINUX_VERSION.search(message)):
                self._boot.kernel = version[1][:100]


def _limit(signature: Signature) -> int:
    """Return how many matches matter: one for a bare mark, all of the line with which a machine starts."""
    if set(signature.marks) & set(_BOUNDARIES):
        return sys.maxsize
    groups = any("(?P<" in pattern for pattern in signature.patterns)
    return LINES_LIMIT if signature.code or groups else 1


def _line_around(text: bytes, at: int, to: int) -> tuple[int, int]:
    low, high = max(0, at - _REACH_BYTES), min(len(text), to + _REACH_BYTES)
    start = max(text.rfind(b"\n", low, at), text.rfind(SOFT, low, at)) + 1 or low
    ends = [e for e in (text.find(b"\n", to, high), text.find(SOFT, to, high)) if e >= 0]
    return start, min(ends, default=high)


def _worth(text: bytes, start: int, end: int, first: int) -> bytes:
    """Return a line, cut around its first literal when it is long; a JSON line is needed whole."""
    if end - start > _BEFORE_BYTES + _AFTER_BYTES and not text.startswith(b"{", start):
        start, end = max(start, first - _BEFORE_BYTES), min(end, first + _AFTER_BYTES)
    return text[start:end]


def _excerpt(text: str, around: str) -> str:
    """Return the line, cut to the part that matters when it is long."""
    if len(text) > EXCERPT_CHARS:
        at = max(0, text.find(around))
        text = text[max(0, at - 40) : at + EXCERPT_CHARS - 40]
    return printable(text)
