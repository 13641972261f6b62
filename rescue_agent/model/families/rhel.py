# SPDX-License-Identifier: GPL-3.0-or-later
"""Red Hat Enterprise Linux, Fedora and what is made from them: rpm with yum or dnf."""

from __future__ import annotations

from rescue_agent.model.families import Family

FAMILY = Family(
    name="rhel",
    ids=frozenset({"rhel", "fedora", "centos", "rocky", "almalinux", "ol", "amzn"}),
    marks=(("/var/lib/rpm",), ("/usr/lib/sysimage/rpm",)),
    managers=(("dnf", ("/usr/bin/dnf", "/usr/bin/dnf-3", "/usr/bin/dnf5")), ("yum", ())),
    tools=("/bin/sh", "rpm", "gpg", "ldconfig", "cat", "rm", "sed", "grep", "python3"),
    database_folders=("/usr/lib/sysimage/rpm", "/var/lib/rpm"),
)
