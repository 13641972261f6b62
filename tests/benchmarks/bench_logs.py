# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a log of 200 MB for all signatures, against grep with as many literals and as expressions.

Prints ratios within one run; never fails by time. ``python -m pytest tests/benchmarks/bench_logs.py -s``.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from lab.timing import Timed, timed

from rescue_agent.diagnose import LogScanner, make_matcher
from rescue_agent.probe.logs import read_log, silent

LOG_BYTES = 200_000_000
ERE_BYTES = 4_000_000
"""Extended expressions are so slow that a fiftieth of the log must do; its time is scaled up."""

SAMPLES = (
    "[    0.{n:06d}] Linux version 6.1.0-18-amd64 (debian-kernel@lists.debian.org) (gcc-12)",
    "[    0.{n:06d}] BIOS-e820: [mem 0x0000000000100000-0x000000003ffdffff] usable",
    "[    0.{n:06d}] ACPI: SSDT 0x000000003FFE1B2F 0000D0 (v01 BOCHS  BXPCSSDT 00000001 BXPC 00000001)",
    "[    1.{n:06d}] pci 0000:00:01.1: legacy IDE quirk: reg 0x10: [io  0x01f0-0x01f7]",
    "[    1.{n:06d}] EXT4-fs (vda1): mounted filesystem with ordered data mode. Quota mode: none.",
    "[    2.{n:06d}] systemd[1]: Started Journal Service.",
    "[   12.{n:06d}] audit: type=1400 audit(1700000000.123:{n}): apparmor=\"STATUS\"",
    "Nov 24 10:11:12 host sshd[{n}]: Accepted publickey for user from 192.0.2.7 port 50022 ssh2",
    "Nov 24 10:11:13 host CRON[{n}]: pam_unix(cron:session): session opened for user root(uid=0) by (uid=0)",
    "Nov 24 10:11:14 host kernel: [ 1234.{n:06d}] usb 1-1: new high-speed USB device number 5 using xhci_hcd",
)  # fmt: skip


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long log of a machine that runs, with a panic now and then."""
    file = tmp_path_factory.mktemp("bench") / "messages"
    panic = "[    9.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00"
    block = "".join(line.format(n=n) + "\n" for n in range(2000) for line in SAMPLES[1:])
    block = f"{SAMPLES[0].format(n=1)}\n{block}{panic}\n"
    with open(file, "w") as out:
        while out.tell() < LOG_BYTES:
            out.write(block)
    return file


@pytest.mark.timeout(1200)
def test_a_long_log_against_grep(log: Path, tmp_path: Path) -> None:
    matcher = make_matcher()
    literals, expressions = tmp_path / "literals", tmp_path / "expressions"
    literals.write_text("\n".join(matcher.literals) + "\n")
    patterns = [p for s in matcher.signatures for p in s.patterns]
    extended = [e for p in patterns if (e := extended_expression(p))]
    expressions.write_text("\n".join(extended) + "\n")
    part = tmp_path / "part"
    with open(log, "rb") as whole:
        part.write_bytes(whole.read(ERE_BYTES))
    size_mb = os.stat(log).st_size / 1e6
    ours = timed(
        "all signatures, one pass", lambda: read_log(lambda: LogScanner(matcher), str(log), progress=silent)
    )
    fixed = timed("grep -F -c -f, as many literals", lambda: grep("-F", literals, log))
    sloth = timed("grep -i -E -c -f, on a part", lambda: grep("-iE", expressions, part), runs=1, warm_up=0)
    scaled = Timed(
        f"grep -i -E -c -f, {len(extended)} patterns (scaled)",
        tuple(run * size_mb * 1e6 / ERE_BYTES for run in sloth.runs),
    )
    print(f"\nreading a log of {size_mb:.0f} MB ({len(matcher.literals)} literals)")
    for row in (ours, fixed, scaled):
        ratio = f"   ours takes {ours.median_s / row.median_s:.3f} times as long" if row is not ours else ""
        print(f"  {row.name:<52} {row.median_s:8.2f} s {size_mb / row.median_s:7.1f} MB/s{ratio}")
    print("  aim: at least as fast as grep -E with the same patterns")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  peak memory of this process: {peak_mib:.0f} MiB (aim: under 200)")


def grep(kind: str, patterns: Path, file: Path) -> None:
    argv: Sequence[str] = ("grep", "-a", "-c", kind, "-f", str(patterns), str(file))
    done = subprocess.run(argv, capture_output=True, env={"LC_ALL": "C"}, check=False)
    assert done.returncode in (0, 1), done.stderr


def extended_expression(pattern: str) -> str:
    """Return a signature's pattern as grep -E takes it; empty when it looks around."""
    if re.search(r"\(\?<?[=!]|\(\?P=", pattern):
        return ""
    plain = re.sub(r"\(\?P<\w+>|\(\?:", "(", pattern).replace("^", "")
    plain = re.sub(r"([*+?}])\?", r"\1", plain)
    plain = plain.replace(r"\d", "[0-9]").replace(r"\W", "[^[:alnum:]_]")
    return re.sub(r"\(\|", "(", plain)
