# SPDX-License-Identifier: GPL-3.0-or-later
"""``scan`` of a Debian disk against the sum of the raw tools that find out the same.

Prints ratios within one run; never fails by time. Run as root:
``python -m pytest tests/benchmarks/bench_scan.py -s``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from lab import disks, roots
from lab.agent import Agent
from lab.peers import raw_tools
from lab.timing import Timed, table, timed

from rescue_agent.system import guard

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def virt_inspector(disk: disks.Disk) -> Timed | None:
    if disks.missing_tools("virt-inspector"):
        return None
    os.environ |= {"LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}
    return timed("virt-inspector", lambda: disks.run("virt-inspector", "-a", disk.path), runs=1, warm_up=0)


@pytest.mark.timeout(1800)
def test_scan_against_raw_tools() -> None:
    if not guard.in_private_namespace():
        guard.enter_private_namespace()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        work = Path(folder)
        disk = disks.build_debian_disk(work / "o", work / "disk.img", recipe=roots.STANDARD)
        agent = Agent(work)
        ours = timed("rescue-agent scan --json", lambda: agent.run("scan", disk.path, "--json").expect(0))
        quick = timed(
            "rescue-agent scan --quick --json",
            lambda: agent.run("scan", disk.path, "--quick", "--json").expect(0),
        )
        peers = [timed("sum of raw tools (blkid, e2fsck -fn, dpkg --verify, ...)", lambda: raw_tools(disk))]
        peers += [peer for peer in (virt_inspector(disk),) if peer is not None]
        print()
        print(table("scan of a Debian disk, warm cache", ours, peers, "at most 1.3 times the raw tools"))
        print(table("the same without checksums", quick, peers, "no aim of its own"))
