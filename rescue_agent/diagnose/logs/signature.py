# SPDX-License-Identifier: GPL-3.0-or-later
"""Signatures: what a line of a log says about the cause. Data, one TOML file for each area."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, Literal

import msgspec

from rescue_agent.diagnose.logs.text import message_of
from rescue_agent.errors import DocumentError
from rescue_agent.model.document import Model

_parser: Any = re._parser  # type: ignore[attr-defined]  # there is no public way to a pattern's tree

Weight = Literal["certain", "likely", "possible"]
"""``certain``: the line alone proves its cause. ``likely``: it usually means it. ``possible``: it counts
only where the boot is seen to have stopped; harmless on many machines that run."""

MIN_LITERAL = 3
FOLDER = "signatures"
_COMMON = frozenset(
    """/dev/|cannot|controller|device|disabled|error|fault|failed|failed to|filesystem|hardware|image|init
    kernel|kernel panic|mounted|no such|no such file|not found|not syncing|root|systemd|systemd[1]|time
    timed out|unable|unable to|unknown""".replace("\n    ", "|").split("|")
)
"""Words of healthy logs: poor to look for where a pattern offers anything else."""


class Signature(Model, frozen=True, kw_only=True):
    """One entry of a signature file."""

    id: str
    patterns: tuple[str, ...]
    """Regular expressions (re), any of which is searched in the message without its time stamp; case
    does not matter. Named groups tell the device, the exit code, the library, …"""
    source: str
    """Where the wording comes from: the file of the kernel or program, a man page."""
    examples: tuple[str, ...]
    """Lines that it must match."""
    counterexamples: tuple[str, ...] = ()
    """Lines that look alike and that it must not match."""
    code: str = ""
    """The label of the taxonomy that the line speaks for; empty for a line that is only context."""
    weight: Weight = "likely"
    marks: tuple[str, ...] = ()
    """What the line shows about the boot: ``stopped``, ``came-up``, ``kernel``, or any word that
    another signature's ``needs`` or ``unless`` asks for."""
    needs: tuple[str, ...] = ()
    """It counts only when one of these marks, codes or signatures was seen in the same boot."""
    unless: tuple[str, ...] = ()
    """It does not count when one of these marks, codes or signatures was seen in the same boot."""


def read_signatures(text: str, name: str) -> tuple[Signature, ...]:
    """Return the signatures of one TOML file; raise DocumentError naming the file and the entry."""
    try:
        entries = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DocumentError(f"{name} is not a TOML file: {error}") from error
    unknown = set(entries) - {"signature"}
    if unknown or not isinstance(entries.get("signature", []), list):
        raise DocumentError(f"{name}: only [[signature]] entries are known, not {', '.join(sorted(unknown))}")
    found = []
    for number, entry in enumerate(entries.get("signature", []), 1):
        where = (
            f"{name}: signature {number} ({entry.get('id', 'without id') if isinstance(entry, dict) else ''})"
        )
        try:
            signature = msgspec.convert(entry, Signature)
            patterns = compile_patterns(signature)
            for pattern in signature.patterns:
                literals_of(pattern)
        except (msgspec.ValidationError, re.error, ValueError) as error:
            raise DocumentError(f"{where}: {error}") from error
        if not signature.code and not signature.marks:
            raise DocumentError(f"{where}: it has neither a code nor a mark")
        if not signature.examples:
            raise DocumentError(f"{where}: it has no example line")
        for line in signature.examples:
            if not any(p.search(message_of(line)) for p in patterns):
                raise DocumentError(f"{where}: it does not match its own example {line!r}")
        found.append(signature)
    return tuple(found)


def builtin_signatures() -> tuple[Signature, ...]:
    """Return the signatures that come with the agent."""
    folder = resources.files("rescue_agent.diagnose") / FOLDER
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return tuple(s for f in files for s in read_signatures(f.read_text("utf-8"), f.name))


def combine(builtin: Iterable[Signature], own: Iterable[Signature]) -> tuple[Signature, ...]:
    """Return all signatures; one of the person's own replaces a built-in one with the same id."""
    return tuple({s.id: s for s in (*builtin, *own)}.values())


def compile_patterns(signature: Signature) -> tuple[re.Pattern[str], ...]:
    """Return the compiled patterns; raise re.error for what is none."""
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in signature.patterns)


def literals_of(pattern: str) -> tuple[str, ...]:
    """Return words of which every match of ``pattern`` contains at least one, in lower case.

    The prefilter looks for these in the whole log at once. Raises ValueError when the pattern has
    no fixed text of at least three characters, re.error when it cannot be parsed.
    """
    best = _best(_parser.parse(pattern, re.IGNORECASE))
    if not best:
        raise ValueError(f"the pattern has no fixed text of {MIN_LITERAL} characters or more")
    return tuple(sorted(best))


def _best(items: Sequence[Any]) -> frozenset[str]:
    """Return the words, one of which a sequence must contain, of which the commonest is rarest in logs."""
    choices: list[frozenset[str]] = []
    run = ""
    for operation, argument in items:
        name = str(operation)
        if name == "LITERAL" and argument < 128:
            run += chr(argument).lower()
            continue
        if name == "AT":
            continue
        choices.append(frozenset((run,)))
        if name in ("BRANCH", "SUBPATTERN"):
            inner = argument[1] if name == "BRANCH" else [argument[-1]]
            leads = _leads(inner)
            if run and all(leads):
                choices.append(frozenset(run + lead for lead in leads))
            parts = [_best(part) for part in inner]
            choices.append(frozenset().union(*parts) if all(parts) else frozenset())
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and argument[0] > 0:
            choices.append(_best(argument[2]))
        run = ""
    choices.append(frozenset((run,)))
    usable = [c for c in choices if c and all(len(word) >= MIN_LITERAL for word in c)]
    return max(usable, key=lambda c: (min(map(_rarity, c)), -len(c)), default=frozenset())


def _leads(alternatives: Sequence[Any]) -> list[str]:
    """Return the fixed text with which each alternative begins; empty for one that has none."""
    leads: list[str] = []
    for items in alternatives:
        lead = ""
        for operation, argument in items:
            name = str(operation)
            if name == "LITERAL" and argument < 128:
                lead += chr(argument).lower()
                continue
            if name in ("BRANCH", "SUBPATTERN"):
                inner = _leads(argument[1] if name == "BRANCH" else [argument[-1]])
                if all(inner):
                    leads += [lead + part for part in inner[1:]]
                    lead += inner[0]
            break
        leads.append(lead)
    return leads


def _rarity(word: str) -> int:
    return 1 if word.strip(" :,.[]'") in _COMMON else len(word.strip())
