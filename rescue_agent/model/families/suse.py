# SPDX-License-Identifier: GPL-3.0-or-later
"""openSUSE and SLES: rpm and zypper. Recognised; not mended yet."""

from __future__ import annotations

from rescue_agent.model.families import Family

FAMILY = Family(
    name="suse",
    ids=frozenset({"suse", "opensuse", "opensuse-leap", "opensuse-tumbleweed", "sles", "sled"}),
    marks=(("/var/lib/rpm", "/usr/bin/zypper"), ("/usr/lib/sysimage/rpm", "/usr/bin/zypper")),
    managers=(("zypper", ()),),
    tools=("/bin/sh", "rpm", "zypper", "ldconfig", "cat", "rm", "sed", "grep"),
    database_folders=("/usr/lib/sysimage/rpm", "/var/lib/rpm"),
)
