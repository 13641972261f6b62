# SPDX-License-Identifier: GPL-3.0-or-later
"""Arch Linux and what is made from it: pacman. Recognised; not mended yet."""

from __future__ import annotations

from rescue_agent.model.families import Family

FAMILY = Family(
    name="arch",
    ids=frozenset({"arch", "manjaro", "endeavouros"}),
    marks=(("/var/lib/pacman/local",),),
    managers=(("pacman", ()),),
    tools=("/bin/sh", "pacman", "bsdtar", "ldconfig", "cat", "rm", "sed", "grep"),
    database_folders=("/var/lib/pacman",),
)
