# SPDX-License-Identifier: GPL-3.0-or-later
"""Verification of a Debian root of more than 300 packages against ``dpkg --verify`` and ``debsums``.

Prints ratios within one run; never fails by time. Run as root, by pytest or as a script:
``python tests/benchmarks/bench_verification.py [ROOT]``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from lab import roots
from lab.disks import missing_tools
from lab.timing import Timed, table, timed

from rescue_agent.model.facts import Verification
from rescue_agent.probe.families.debian import dpkg
from rescue_agent.probe.families.debian.exclusion import probe_exclusions
from rescue_agent.probe.families.debian.verification import Level, verify
from rescue_agent.system.root import TargetRoot

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

ROUNDS = 5
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def ours(tree: Path, level: Level) -> Verification:
    """What the agent does for it: read the database, then compare."""
    with TargetRoot(tree) as root:
        found = dpkg.probe_database(root)
        return verify(
            root,
            found.to_verify,
            level=level,
            conffiles=found.conffiles,
            diversions=dpkg.probe_diversions(root),
            exclusions=probe_exclusions(root),
        ).fact


def run(*argv: str) -> None:
    subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )


def measured(actions: dict[str, Callable[[], object]], rounds: int, warm_up: int) -> dict[str, Timed]:
    """Take turns, so that whatever else the machine does falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + warm_up):
        for name, action in actions.items():
            (seconds,) = timed(name, action, runs=1, warm_up=0).runs
            if number >= warm_up:
                times[name].append(seconds)
    return {name: Timed(name, tuple(runs)) for name, runs in times.items()}


def cold(action: Callable[[], object]) -> Callable[[], object]:
    def start() -> object:
        os.sync()
        DROP_CACHES.write_text("3\n")
        return action()

    return start


def compare(tree: Path) -> str:
    actions: dict[str, Callable[[], object]] = {
        "full": lambda: ours(tree, "full"),
        "existence": lambda: ours(tree, "existence"),
        "dpkg --verify": lambda: run("dpkg", f"--root={tree}", "--verify"),
    }
    if not missing_tools("debsums"):
        actions["debsums -s -a"] = lambda: run("debsums", f"--root={tree}", "-s", "-a")
    fact = ours(tree, "full")
    warm = measured(actions, ROUNDS, 1)
    peers = [timed for name, timed in warm.items() if name not in ("full", "existence")]
    pages = [
        f"{fact.packages} packages, {fact.files} listed paths, {len(fact.damaged)} damaged; "
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}",
        table("all digests, warm cache", warm["full"], peers, "at most 0.67 of the better one"),
        table("existence only, warm cache", warm["existence"], [warm["full"]], "at most 0.20"),
    ]
    if os.access(DROP_CACHES, os.W_OK):
        del actions["existence"]
        # The dropping itself takes a while: it is measured apart and counted to nobody.
        drop = timed("drop", cold(lambda: None), runs=1, warm_up=1).median_s
        chilled = measured({name: cold(action) for name, action in actions.items()}, 1, 0)
        net = {n: Timed(n, tuple(max(0.0, r - drop) for r in t.runs)) for n, t in chilled.items()}
        others = [timed for name, timed in net.items() if name != "full"]
        pages.append(table("all digests, cold cache", net["full"], others, "at most 1.0"))
    tracemalloc.start()
    ours(tree, "full")
    pages.append(
        f"memory allocated on the way: {tracemalloc.get_traced_memory()[1] / (1 << 20):.1f} MiB at most"
    )
    tracemalloc.stop()
    return "\n".join(pages)


@pytest.mark.timeout(1800)
def test_verification_against_dpkg_and_debsums() -> None:
    print("\n" + compare(roots.golden_tree(roots.LARGE)))


if __name__ == "__main__":
    print(compare(Path(sys.argv[1]) if len(sys.argv) > 1 else roots.golden_tree(roots.LARGE)))
