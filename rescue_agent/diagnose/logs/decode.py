# SPDX-License-Identifier: GPL-3.0-or-later
"""What the numbers in a log line mean, in words. Every table names where it is defined."""

from __future__ import annotations

import errno as errors
import re
import signal
from collections.abc import Mapping

TAINT_FLAGS: Mapping[str, str] = {
    # Documentation/admin-guide/tainted-kernels.rst
    "P": "a proprietary module was loaded",
    "F": "a module was loaded by force",
    "S": "the processor or the kernel is out of its specification",
    "R": "a module was unloaded by force",
    "M": "the processor reported a machine check",
    "B": "a bad page was found",
    "U": "user space asked for the taint",
    "D": "the kernel died before (oops or BUG)",
    "A": "an ACPI table was overridden",
    "W": "a warning was issued before",
    "C": "a staging driver was loaded",
    "I": "a firmware bug was worked around",
    "O": "a module from outside of the tree was loaded",
    "E": "a module without signature was loaded",
    "L": "a soft lockup happened before",
    "K": "the kernel was live patched",
    "X": "the distribution set its own taint",
    "T": "the kernel was built with randomised structures",
}
EXIT_CODES: Mapping[int, str] = {
    # POSIX 2.8.2 (Exit Status for Commands); glibc elf/rtld.c ends with 127 as well
    126: "the program was found but could not be run",
    127: "not found: the shell or the dynamic loader did not find the program or a library of it",
}
BLOCK_MAJORS: Mapping[int, str] = {
    # Documentation/admin-guide/devices.txt
    1: "a RAM disk",
    2: "a floppy disk: root= was not understood",
    3: "an IDE disk (hda, hdb)",
    7: "a loop device",
    8: "a SCSI, SATA or USB disk (sda to sdp)",
    9: "an md array",
    11: "a CD or DVD drive",
    31: "a flash partition (mtdblock)",
    43: "a network block device",
    179: "an SD card or eMMC",
    202: "a Xen virtual disk (xvd)",
    259: "an NVMe disk or a partition with a dynamic number",
}
ROOT_NFS, ROOT_CIFS = (0, 255), (0, 254)
"""Root_NFS and Root_CIFS of linux include/linux/root_dev.h."""

EXT_INCOMPATIBLE: Mapping[int, str] = {
    # linux fs/ext4/ext4.h, EXT4_FEATURE_INCOMPAT_*
    0x1: "compression",
    0x2: "filetype",
    0x4: "recover (journal to be replayed)",
    0x8: "journal device",
    0x10: "meta_bg",
    0x40: "extents",
    0x80: "64bit",
    0x100: "mmp",
    0x200: "flex_bg",
    0x400: "ea_inode",
    0x1000: "dirdata",
    0x2000: "metadata_csum_seed",
    0x4000: "large_dir",
    0x8000: "inline_data",
    0x10000: "encrypt",
    0x20000: "casefold",
}
SPECIAL_ERRNO: Mapping[int, str] = {
    # what they mean where a boot reports them
    2: "it does not exist, or its interpreter does not",
    5: "the device returned an error",
    6: "there is no such device",
    8: "its format or architecture is not one that this kernel runs",
    13: "permission was refused",
    19: "no driver of this kernel takes the device or its filesystem",
    22: "something in it is not valid",
    74: "a checksum does not fit (EBADMSG)",
    110: "it did not answer in time",
    117: "the filesystem's structure needs cleaning (EUCLEAN)",
}


def wait_status(status: int) -> str:
    """Return what a wait status says (wait(2)); ``0x7f00`` is exit status 127, ``0x0b`` is SIGSEGV."""
    number = status & 0x7F
    if number:
        dumped = ", core dumped" if status & 0x80 else ""
        return f"ended by {signal_name(number)}{dumped}"
    code = status >> 8 & 0xFF
    meaning = EXIT_CODES.get(code, "")
    return f"exit status {code}" + (f" ({meaning})" if meaning else "")


def signal_name(number: int) -> str:
    """Return the name of a signal with what it means for PID 1 (signal(7))."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    why = {
        4: "an instruction that this processor does not have, or damaged code",
        6: "it gave up by itself (an assertion)",
        7: "memory that could not be read: a damaged file or a failing disk below it",
        9: "it was killed: often for want of memory",
        11: "it touched memory that is not its own: damaged program or library",
    }.get(number, "")
    return f"{name}: {why}" if why else name


def errno_text(number: int) -> str:
    """Return the name of an errno and what it means at boot (errno(3)); the sign does not matter."""
    number = abs(number)
    name = errors.errorcode.get(number, f"error {number}")
    why = SPECIAL_ERRNO.get(number, "")
    return f"{name}: {why}" if why else name


def block_number(major: int, minor: int) -> str:
    """Return what ``unknown-block(major,minor)`` says about the root device."""
    if (major, minor) == (0, 0):
        return "no device at all: no driver found the disk, or there was no initramfs to look for it"
    if (major, minor) in (ROOT_NFS, ROOT_CIFS):
        return "a root on the network"
    kind = BLOCK_MAJORS.get(major, "a device with a number given out at boot")
    return f"{kind}: the device is known, but nothing on it could be mounted"


def taint(flags: str) -> tuple[str, ...]:
    """Return what each letter of ``Tainted:`` says; letters that mean nothing bad are left out."""
    return tuple(TAINT_FLAGS[flag] for flag in flags if flag in TAINT_FLAGS)


def ext_features(word: int) -> str:
    """Return the names of the incompatible features in a word of an ext superblock."""
    names = [name for bit, name in EXT_INCOMPATIBLE.items() if word & bit]
    rest = word & ~sum(EXT_INCOMPATIBLE)
    if rest:
        names.append(f"unknown bits {rest:#x}")
    return ", ".join(names)


def explain_values(values: Mapping[str, str]) -> tuple[str, ...]:
    """Return a sentence for every value of a line that a table explains."""
    told: list[str] = []
    for name, value in values.items():
        kind = name.rstrip("0123456789")
        if kind == "exitcode":
            told.append(f"{value} means: {wait_status(int(value, 16))}")
        elif kind == "errno":
            told.append(f"error {value} means {errno_text(int(value))}")
        elif kind == "block" and (match := re.fullmatch(r"(\d+),(\d+)", value)):
            told.append(f"block {value} is {block_number(int(match[1]), int(match[2]))}")
        elif kind == "features" and re.fullmatch(r"[0-9a-f]{1,8}", value):
            told.append(f"feature word {value}: {ext_features(int(value, 16))}")
        elif kind == "signal" and value.isalpha():
            number = getattr(signal, f"SIG{value}", None)
            told.append(signal_name(number) if number else value)
        elif kind == "taint":
            told += taint(value)
    return tuple(dict.fromkeys(told))
