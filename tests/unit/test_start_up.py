# SPDX-License-Identifier: GPL-3.0-or-later
"""Start-up is part of the product: ``--version`` loads nothing that it does not need."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.real_commands

ROOT = Path(__file__).parents[2]
HEAVY = {"msgspec", "psutil", "pyudev", "rich", "sh", "elftools", "textual", "jinja2"}
VERSION = ("-m", "rescue_agent", "--version")
TYPER = ("-c", "import typer")
AIM = 2.5


def loaded_by(*argv: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *argv], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def seconds(*argv: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - start


def test_version_loads_nothing_heavy() -> None:
    assert not loaded_by(*VERSION) & HEAVY - loaded_by(*TYPER)


def test_version_is_told_on_standard_output() -> None:
    done = subprocess.run([sys.executable, *VERSION], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("rescue-agent ")
    assert done.stderr == ""


def test_ratio_to_typer_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The time itself is told, not judged tightly: other work on the machine must not fail a build."""
    pairs = [(seconds(*VERSION), seconds(*TYPER)) for _ in range(5)]
    ratio = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
    with capsys.disabled():
        print(f"\n--version takes {ratio:.2f} times as long as importing typer (aim: {AIM})")
    assert ratio < 2 * AIM
