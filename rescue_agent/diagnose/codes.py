# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of every code: what it means, what is done about it, and which codes bring it about."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources

import msgspec

from rescue_agent.model.document import Model
from rescue_agent.model.finding import Repair

UNKNOWN = "unknown"


class Code(Model, frozen=True, kw_only=True):
    """One label, with the text that a person reads."""

    code: str
    title: str = ""
    """For findings from logs; ``{on}`` and ``{named}`` stand where the device is told."""
    what: str
    remedy: str
    check: str
    repair: Repair
    """``automatic``: the remedy is a change on the patient's own disks. ``advice``: it is not."""
    explained_by: tuple[str, ...] = ()
    """Codes nearer to the metal that bring this one about."""
    seen_on_disk: bool = False
    """A look at the disk alone shows whether it is so."""


@cache
def all_codes() -> dict[str, Code]:
    """Return every code, nearest to the metal first."""
    text = (resources.files("rescue_agent.diagnose") / "codes.toml").read_text("utf-8")
    return {code: msgspec.convert({"code": code, **page}, Code) for code, page in tomllib.loads(text).items()}


def find_code(code: str) -> Code | None:
    """Return the page of a code, or None."""
    return all_codes().get(code)


@cache
def causes_of(code: str) -> frozenset[str]:
    """Return every code that can bring ``code`` about, directly or through others; never itself."""
    found: set[str] = set()
    todo = [code]
    while todo:
        page = find_code(todo.pop())
        for cause in page.explained_by if page is not None else ():
            if cause not in found:
                found.add(cause)
                todo.append(cause)
    return frozenset(found - {code})


@cache
def depth_of(code: str) -> int:
    """Return how far from the metal a code stands."""
    return list(all_codes()).index(code) if code in all_codes() else len(all_codes())
