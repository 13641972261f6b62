# SPDX-License-Identifier: GPL-3.0-or-later
"""Packaged files that were never unpacked, on purpose: dpkg's path filters, and minimal images.

dpkg keeps listing a path that it was told to leave out (dpkg(1), ``--path-exclude``), so its absence
is no damage. Image builders also delete documentation afterwards without telling dpkg.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rescue_agent.errors import UnsafePath
from rescue_agent.system.root import TargetRoot

CONFIG = "/etc/dpkg/dpkg.cfg"
DOCUMENTATION = (
    "/usr/share/doc/",
    "/usr/share/man/",
    "/usr/share/info/",
    "/usr/share/locale/",
    "/usr/share/lintian/",
    "/usr/share/help/",
    "/usr/share/gtk-doc/",
    "/usr/share/doc-base/",
)
"""Trees that no program needs. One of them that is gone almost wholly was removed by choice."""
_MOSTLY = 0.9
_FEW = 20
MAX_RULES = 256


class Rule(NamedTuple):
    """``--path-exclude`` or ``--path-include``; the last rule that matches a path decides."""

    include: bool
    pattern: re.Pattern[str]


def parse_dpkg_cfg(text: str) -> tuple[Rule, ...]:
    """Return the path filters of a dpkg configuration file (dpkg.cfg(5)), in order."""
    rules = []
    for raw in text.splitlines():
        line = raw.strip().removeprefix("--")
        match = re.match(r"path-(include|exclude)(?:=|\s+)(\S.*)\Z", line)
        if match and len(match[2]) < 1024:
            pattern = match[2].strip().strip("\"'")
            try:
                rules.append(Rule(match[1] == "include", re.compile(fnmatch.translate(pattern), re.DOTALL)))
            except re.error:
                continue
    return tuple(rules[:MAX_RULES])


class Exclusions:
    """Says which missing paths were left out by choice."""

    def __init__(self, rules: tuple[Rule, ...] = ()) -> None:
        self._rules = rules

    def by_rule(self, path: str) -> bool:
        """Return whether dpkg was told not to unpack ``path``, or the folder that holds it."""
        while path:
            deciding = [rule for rule in self._rules if rule.pattern.match(path)]
            if deciding:
                return not deciding[-1].include
            path = path.rpartition("/")[0]
        return False

    def left_out(
        self, missing: Iterable[tuple[str, str]], listed: Callable[[], Iterable[str]]
    ) -> frozenset[str]:
        """Return those of the ``missing`` paths (with their packages) whose absence is no damage.

        ``listed`` gives all paths that ought to exist; it is asked only when a documentation tree
        has lost many.
        """
        paths = [path for path, _ in missing]
        found = {path for path in paths if self._rules and self.by_rule(path)}
        lost = Counter(tree for path in paths if (tree := _tree(path)))
        lost = Counter({tree: count for tree, count in lost.items() if count >= _FEW})
        if lost:
            all_of = Counter(tree for path in listed() if (tree := _tree(path)))
            bare = {tree for tree, count in lost.items() if count >= _MOSTLY * all_of[tree]}
            found.update(path for path in paths if _tree(path) in bare)
        return frozenset(found)


def _tree(path: str) -> str:
    if not path.startswith(DOCUMENTATION):
        return ""
    return next(tree for tree in DOCUMENTATION if path.startswith(tree))


def probe_exclusions(root: TargetRoot) -> Exclusions:
    """Return the patient's path filters: dpkg.cfg.d in order of name, then dpkg.cfg itself."""
    names = [n for n in root.names(CONFIG + ".d") if re.fullmatch(r"[A-Za-z0-9_-]+", n)]
    rules: list[Rule] = []
    for path in [*(f"{CONFIG}.d/{name}" for name in names[:256]), CONFIG]:
        try:
            rules += parse_dpkg_cfg(root.read_text(path, 1 << 18))
        except (OSError, UnsafePath):
            continue
    return Exclusions(tuple(rules[:MAX_RULES]))
