# SPDX-License-Identifier: GPL-3.0-or-later
"""What a file is that is no dump of a form read here, and which tool makes one of it.

Magic numbers: QEMU migration/qemu-file.h, libvirt src/qemu/qemu_saveimage.h, crash's vmware_vmss.h,
xendump.h, lkcd_dump_v1.h, qemu-load.h; include/uapi/linux/magic.h and file(1)'s magic for the rest.
"""

from __future__ import annotations

import string
import struct
from typing import NamedTuple

from rescue_agent.system.imageformats import parse_format

HEAD_BYTES = 1 << 16

_MEMORY_ONLY = (
    "dump the running guest with virsh dump --memory-only; a saved one: start the same machine with "
    "qemu -S -incoming 'exec:cat FILE' and give dump-guest-memory in its monitor"
)
_CRASH = "crash with the kernel's debuginfo reads it: name that with --debuginfo"
_LOG = "name it with --log"
_DISK = "name it as the disk to look at, not as a dump"
_UNPACK = "unpack it first"


class Format(NamedTuple):
    """What a file is and what to do with it."""

    name: str
    advice: str
    crash_reads_it: bool = False
    """crash(8) can be given the file as it is, together with the debug kernel."""


_VMWARE = Format(
    "a VMware state file (vmss, vmsn)", f"VMware's vmss2core makes an ELF core of it; or {_CRASH}", True
)
_STARTS: tuple[tuple[bytes, Format], ...] = (
    (b"QEVM", Format("a QEMU migration stream (virsh dump without --memory-only)", _MEMORY_ONLY)),
    (b"LibvirtQemudSave", Format("a libvirt save file (virsh save, managed save)", _MEMORY_ONLY)),
    (b"LibvirtQemudPart", Format("an unfinished libvirt save file", _MEMORY_ONLY)),
    *((struct.pack("<I", magic), _VMWARE) for magic in (0xBED0BED0, 0xBED2BED2, 0xBED3BED3, 0xBAD1BAD1)),
    (struct.pack("<I", 0xF00FEBED), Format("a Xen core (xm dump-core)", _CRASH, True)),
    (struct.pack("<I", 0xF00FEBEE), Format("a Xen HVM core (xm dump-core)", _CRASH, True)),
    (struct.pack("<Q", 0xA8190173618F23ED), Format("an LKCD dump", _CRASH, True)),
    (struct.pack("<Q", 0xA8190173618F23CD), Format("an LKCD dump of a running machine", _CRASH, True)),
    (
        struct.pack(">Q", 0xA8190173618F23FD),
        Format("an s390 stand-alone dump", "zgetdump of s390-tools converts it"),
    ),
    (b"DISKDUMP", Format("a diskdump file", _CRASH, True)),
    (b"PAGEDU64", Format("a Windows crash dump", "no Linux kernel is in it; Windows' own debugger reads it")),
    (b"PAGEDUMP", Format("a Windows crash dump", "no Linux kernel is in it; Windows' own debugger reads it")),
    (b"MDMP", Format("a Windows minidump", "no Linux kernel is in it; Windows' own debugger reads it")),
    (
        b"\x7fVirtualBox",
        Format("a VirtualBox saved state", "VBoxManage debugvm NAME dumpvmcore writes an ELF core"),
    ),
    (
        b"LPKSHHRH",
        Format("a systemd journal file", "journalctl --file FILE -o export writes what --log reads"),
    ),
    (b"\x28\xb5\x2f\xfd", Format("compressed with zstd", f"{_UNPACK}: zstd -d FILE")),
    (b"\x04\x22\x4d\x18", Format("compressed with lz4", f"{_UNPACK}: lz4 -d FILE")),
    (b"\x89LZO\0", Format("compressed with lzop", f"{_UNPACK}: lzop -d FILE")),
    (b"BZh", Format("compressed with bzip2", f"{_UNPACK}: bunzip2 FILE")),
    (b"7z\xbc\xaf\x27\x1c", Format("a 7-Zip archive", f"{_UNPACK}: 7z x FILE")),
    (b"PK\x03\x04", Format("a zip archive", f"{_UNPACK}: unzip FILE")),
    (
        b"!<arch>\n",
        Format("a Debian package or another ar archive", "a debug kernel is named with --debuginfo"),
    ),
    (b"\xed\xab\xee\xdb", Format("an RPM package", "a debug kernel is named with --debuginfo")),
    (b"VMA\0", Format("a Proxmox backup archive", f"{_UNPACK}: vma extract FILE FOLDER; then name the disk")),
)
_SUFFIXES: dict[str, Format] = {
    ".vmem": Format(
        "the memory file of a VMware guest", f"vmss2core makes an ELF core of it; or {_CRASH}", True
    ),
    **dict.fromkeys(
        (".vmrs", ".vsv"),
        Format(
            "a Hyper-V saved state",
            "no free tool reads it; let kdump write a dump inside the guest, or save its serial console",
        ),
    ),
}
_IMAGE_MAGIC: tuple[tuple[int, bytes], ...] = (
    (510, b"\x55\xaa"),
    (512, b"EFI PART"),
    (1080, b"\x53\xef"),
    (0, b"XFSB"),
    (0, b"LUKS\xba\xbe"),
    (0x8001, b"CD001"),
)
_TEXT = frozenset(string.printable.encode()) | frozenset(range(0x80, 0x100)) | {0x1B}


def name_format(head: bytes, name: str) -> Format:
    """Return what a file is by its first bytes (64 KiB) and its name; never fails."""
    if not head:
        return Format("empty", "copy it again; kdump leaves an empty file when there is no room")
    for start, found in _STARTS:
        if head.startswith(start):
            return found
    if head[257:262] == b"ustar":
        return Format("a tar archive", f"{_UNPACK}: tar -xf FILE")
    image = parse_format(head)
    if image != "raw":
        return Format(f"a {image} disk image", _DISK)
    # A dump that a suffix tells of may begin with anything, such as the guest's own boot sector.
    for suffix, found in _SUFFIXES.items():
        if name.endswith(suffix):
            return found
    if any(head[at : at + len(magic)] == magic for at, magic in _IMAGE_MAGIC):
        return Format("a disk image", _DISK)
    if not any(head):
        return Format("a file that begins with nothing but zeros", "it may be a failed copy")
    if len(head) == sum(byte in _TEXT for byte in head):
        return Format("a text file", _LOG)
    return Format("in no known form", "virsh dump --memory-only and kdump write dumps that can be read")
