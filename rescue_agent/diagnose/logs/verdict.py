# SPDX-License-Identifier: GPL-3.0-or-later
"""From the lines that signatures know to causes: context, weight, and which cause explains which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from rescue_agent.diagnose.codes import UNKNOWN, all_codes, causes_of, depth_of
from rescue_agent.diagnose.logs.devices import device_of, find_device, find_identity
from rescue_agent.diagnose.logs.signature import Signature
from rescue_agent.model.logs import Boot, LogHit

RANK = {"possible": 1, "likely": 2, "certain": 3}
_STORAGE = ["init", "initramfs", "root", "disk", "storage", "fs", "partition", "volume", "md", "luks", "grub"]
_ABOUT_A_DEVICE = frozenset(
    code for code in all_codes() if code.endswith("-fs-corrupt") or code.partition("-")[0] in _STORAGE
)
"""Codes of which a person wants to know on which device it is."""

STOPPED, CAME_UP = "stopped", "came-up"

_LINKED = re.compile(r"([\w-]+)(?:\(([A-Z+-]+)\))?")
_CRASHES = frozenset(("oops", "lockup"))
"""Marks of lines after which the kernel tells where it was."""
_OUTSIDE = frozenset("POF")
"""Taints by modules: proprietary, out of tree, forced (Documentation/admin-guide/tainted-kernels.rst)."""


class Clue(NamedTuple):
    """A line that counts, and what it speaks for."""

    signature: Signature
    hit: LogHit

    @property
    def rank(self) -> int:
        return RANK[self.signature.weight]


class Verdict(NamedTuple):
    """One cause that a boot's lines speak for."""

    code: str
    clues: tuple[Clue, ...]
    """The decisive line first."""
    explained_by: str = ""
    """The code of the verdict that brings this one about; empty for a root cause."""
    context: tuple[LogHit, ...] = ()
    """All known lines of the boot."""

    @property
    def rank(self) -> int:
        return max((clue.rank for clue in self.clues), default=0)

    @property
    def device(self) -> str:
        """The device as the log names it; empty when no line does.

        Where the decisive lines name none, the nearest line before or after them that does.
        """
        own = [clue.hit for clue in self.clues]
        near = sorted(self.context, key=lambda hit: abs(hit.line - own[0].line)) if own else []
        about = self.code in _ABOUT_A_DEVICE
        return find_device(own) or (find_device(near) if about else "") or find_identity(own)

    @property
    def lines(self) -> set[int]:
        return {clue.hit.line for clue in self.clues}

    @property
    def first_line(self) -> int:
        return min(self.lines)


class Judgement(NamedTuple):
    """What came of one boot."""

    boot: Boot
    verdicts: tuple[Verdict, ...]
    """Root causes first; the first one is the answer."""
    stopped: bool
    came_up: bool


def judge(boots: Sequence[Boot], signatures: Mapping[str, Signature]) -> Judgement | None:
    """Return the judgement of the last boot that failed, or None when none did.

    Earlier boots are context: where the last one shows no more than that it stopped, a cause that
    an earlier one names more surely is taken in.
    """
    for at in range(len(boots) - 1, -1, -1):
        judged = _judge_one(boots[at], boots[at].hits, signatures)
        if not judged.verdicts:
            continue
        if judged.verdicts[0].rank == RANK["possible"] and at:
            earlier = [hit for boot in boots[: at + 1] for hit in boot.hits]
            wider = _judge_one(boots[at], earlier, signatures)
            if wider.verdicts and wider.verdicts[0].rank > judged.verdicts[0].rank:
                return wider
        return judged
    return None


def _judge_one(boot: Boot, hits: Iterable[LogHit], signatures: Mapping[str, Signature]) -> Judgement:
    clues = [Clue(signatures[hit.signature], hit) for hit in hits if hit.signature in signatures]
    seen = {token for clue in clues for token in _tokens(clue.signature)}
    clues = [c for c in clues if _counts(c.signature, seen)]
    clues += _outside_modules(clues)
    stopped = any(STOPPED in c.signature.marks for c in clues)
    came_up = any(CAME_UP in c.signature.marks for c in clues)
    by_code: dict[str, list[Clue]] = {}
    for clue in clues:
        if clue.signature.code:
            by_code.setdefault(clue.signature.code, []).append(clue)
    found = [
        Verdict(
            code,
            tuple(sorted(own, key=lambda c: (-c.rank, not device_of(c.hit), c.hit.line))),
            context=tuple(clue.hit for clue in clues),
        )
        for code, own in by_code.items()
    ]
    found = [v for v in found if v.rank > RANK["possible"] or stopped]
    if not found and stopped:
        found = [Verdict(UNKNOWN, tuple(c for c in clues if STOPPED in c.signature.marks))]
    return Judgement(boot, _ordered(found), stopped, came_up)


def _tokens(signature: Signature) -> Iterator[str]:
    yield signature.id
    yield from signature.marks


def _counts(signature: Signature, seen: set[str]) -> bool:
    if signature.needs and not seen & set(signature.needs):
        return False
    return not seen & (set(signature.unless) - {signature.id})


def _ordered(found: Sequence[Verdict]) -> tuple[Verdict, ...]:
    told = [verdict._replace(explained_by=_cause(verdict, found)) for verdict in found]
    lines = {v.code: v.lines for v in told}
    # A consequence that stands in no line of its own says nothing more.
    told = [v for v in told if not v.explained_by or v.lines - lines[v.explained_by]]
    return tuple(sorted(told, key=lambda v: (bool(v.explained_by), -v.rank, depth_of(v.code), v.first_line)))


def _cause(verdict: Verdict, found: Sequence[Verdict]) -> str:
    return explaining(verdict.code, verdict.rank, [(v.code, v.rank) for v in found])


def explaining(code: str, rank: int, others: Iterable[tuple[str, int]]) -> str:
    """Return the code of the surest of ``others`` that brings ``code`` about, or an empty string.

    A cause must not be less sure than its effect, or at least likely. Where two codes may each bring
    the other about, the surer one is the cause, and of equals the one nearer to the metal.
    """
    causes = causes_of(code)
    enough = min(rank, RANK["likely"])
    own = (rank, -depth_of(code))
    fitting = [
        (other_rank, -depth_of(other), other)
        for other, other_rank in others
        if other in causes
        and other_rank >= enough
        and (code not in causes_of(other) or (other_rank, -depth_of(other)) > own)
    ]
    return max(fitting)[2] if fitting else ""


# --- crashes inside a module from outside of the tree ---------------------------------------------

_BLAME = Signature(
    id="oops-in-outside-module",
    code="third-party-module-crash",
    weight="certain",
    patterns=(),
    source="linux kernel/panic.c: taint flags P (proprietary), O (out of tree), F (forced)",
    examples=(),
)
_SUSPECT = msgspec.structs.replace(_BLAME, id="oops-in-some-module-tainted", weight="likely")


def _outside_modules(clues: Sequence[Clue]) -> list[Clue]:
    """Return the crash lines whose instruction pointer lies in a module that taints the kernel.

    The list of loaded modules flags those from outside of the tree. Where a log was cut before it, a
    taint by some such module and a crash inside of a module are only a strong suspicion.
    """
    if not any(_CRASHES & set(c.signature.marks) for c in clues):
        return []
    linked = [pair for clue in clues for pair in _LINKED.findall(clue.hit.values.get("modules", ""))]
    outside = {module for module, flags in linked if set(flags) & _OUTSIDE}
    tainted = any(set(clue.hit.values.get("taint", "")) & _OUTSIDE for clue in clues)
    places = [c for c in clues if "oops-place" in c.signature.marks]
    if linked and not places and outside == {module for module, _ in linked}:
        return [Clue(_SUSPECT, c.hit) for c in clues if "modules" in c.signature.marks]
    blame = _BLAME if linked else _SUSPECT
    return [
        Clue(blame, c.hit)
        for c in places
        if c.hit.values.get("module") in outside or (not linked and tainted)
    ]
