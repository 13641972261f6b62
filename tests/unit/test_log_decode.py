# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers in words, against the definitions of the C library and of the kernel."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_agent.diagnose.logs import decode

ERRNO_H = Path("/usr/include/asm-generic/errno-base.h")


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (0x7F00, "exit status 127 (not found"),
        (0x7E00, "exit status 126"),
        (0x0100, "exit status 1"),
        (0x000B, "SIGSEGV"),
        (0x008B, "SIGSEGV: it touched memory that is not its own: damaged program or library, core dumped"),
        (0x0004, "SIGILL"),
        (0x0009, "SIGKILL"),
        (0x0006, "SIGABRT"),
        (0x0007, "SIGBUS"),
    ],
)
def test_wait_status(status: int, says: str) -> None:
    assert says in decode.wait_status(status)


@given(st.integers(0, 0xFFFF))
def test_a_wait_status_agrees_with_the_c_library(status: int) -> None:
    text = decode.wait_status(status)
    if os.WIFEXITED(status):
        assert f"exit status {os.WEXITSTATUS(status)}" in text
    elif os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        names = {s.value: s.name for s in signal.Signals}
        assert names.get(number, f"signal {number}") in text
        assert ("core dumped" in text) == os.WCOREDUMP(status)


@pytest.mark.parametrize(
    ("number", "name"),
    [(-2, "ENOENT"), (-5, "EIO"), (-6, "ENXIO"), (-8, "ENOEXEC"), (-19, "ENODEV"), (-117, "EUCLEAN")],
)
def test_errno(number: int, name: str) -> None:
    assert decode.errno_text(number).startswith(name)


@pytest.mark.skipif(not ERRNO_H.exists(), reason="the kernel's headers are not installed")
def test_errno_names_are_those_of_the_kernel() -> None:
    defined = re.findall(r"#define\s+(E\w+)\s+(\d+)", ERRNO_H.read_text())
    assert len(defined) > 30
    for name, number in defined:
        assert decode.errno_text(int(number)).startswith(name)


@pytest.mark.parametrize(
    ("major", "minor", "says"),
    [
        (0, 0, "no device at all"),
        (0, 255, "network"),
        (8, 1, "SCSI, SATA or USB disk"),
        (253, 0, "number given out at boot"),
        (259, 2, "NVMe"),
        (9, 0, "md array"),
        (179, 2, "SD card"),
        (2, 0, "floppy"),
    ],
)
def test_block_numbers(major: int, minor: int, says: str) -> None:
    assert says in decode.block_number(major, minor)


def test_taint_flags() -> None:
    """In the order of the kernel's table; G and blanks stand for flags that are not set."""
    assert decode.taint("G           OE    ") == (
        "a module from outside of the tree was loaded",
        "a module without signature was loaded",
    )
    assert set(decode.TAINT_FLAGS) == set("PFSRMBUDAWCIOELKXT")


def test_ext_features() -> None:
    assert decode.ext_features(0x2C2) == "filetype, extents, 64bit, flex_bg"
    assert "unknown bits 0xfd180020" in decode.ext_features(0xFD18B1B5)


def test_the_values_of_a_line() -> None:
    values = {"exitcode": "0x00007f00", "block": "0,0", "errno2": "-6", "device": "sda", "signal": "SEGV"}
    told = decode.explain_values(values)
    assert len(told) == 4
    assert "exit status 127" in told[0]
    assert "ENXIO" in told[2]
    assert decode.explain_values({"features": "not hex", "block": "x"}) == ()
