# SPDX-License-Identifier: GPL-3.0-or-later
"""What the first bytes of a disk image say: its format, and which other files it would pull in.

Read here, by a small bounded reader, *before* QEMU opens the image: an image from somebody else may
name ``/etc/shadow``, a network address or a ``json:`` description as its backing file, data file or
extent, and QEMU would follow. Sources: docs/interop/qcow2.txt of QEMU, the "VMware Virtual Disk
Format 1.1" note, the Virtual Disk Image header of VirtualBox (VDICore.h), MS-VHDX, MS-VHD.
"""

from __future__ import annotations

import re
import struct
from typing import Literal, NamedTuple

from rescue_agent.errors import RescueError
from rescue_agent.model.document import printable

Format = Literal["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"]

HEAD_BYTES = 1 << 20
"""How much of an image's beginning the parsers want to see."""
TAIL_BYTES = 512

QCOW2_DATA_FILE = 0x44415441
QCOW2_DATA_FILE_BIT = 1 << 2
QCOW2_NAME_LIMIT = 1023
_VMDK_DESCRIPTOR_LIMIT = 1 << 20
_VMDK_EXTENT = re.compile(r'^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)(?:\s+"([^"]*)")?', re.MULTILINE)
_VMDK_PARENT = re.compile(r'^\s*parentFileNameHint\s*=\s*"([^"]*)"', re.MULTILINE)


class References(NamedTuple):
    """Names, as they stand in an image, of the files that it needs beside itself."""

    backing: str = ""
    others: tuple[str, ...] = ()
    """A qcow2 data file, the extents of a VMDK."""


def parse_format(head: bytes, tail: bytes = b"") -> Format:
    """Return the format of an image from its first bytes (and, for a fixed VHD, its last 512)."""
    if head.startswith(b"QFI\xfb"):
        return "qcow2"
    if head.startswith((b"KDMV", b"COWD")) or head.lstrip()[:21] == b"# Disk DescriptorFile":
        return "vmdk"
    if head[64:68] == struct.pack("<I", 0xBEDA107F):
        return "vdi"
    if head.startswith(b"vhdxfile"):
        return "vhdx"
    if head.startswith(b"conectix") or tail.startswith(b"conectix"):
        return "vpc"
    return "raw"


def parse_references(head: bytes, image_format: Format) -> References:
    """Return what the header of an image names; RescueError when the header is damaged.

    A VHD or VHDX that builds on a parent is not told apart here: QEMU refuses to open those.
    """
    if image_format == "qcow2":
        return _qcow2_references(head)
    if image_format == "vmdk":
        return _vmdk_references(head)
    return References()


def _qcow2_references(head: bytes) -> References:
    if len(head) < 72:
        raise RescueError("its qcow2 header is cut off")
    _, version, name_at, name_size = struct.unpack_from(">IIQI", head)
    if version not in (2, 3):
        raise RescueError(f"its qcow2 version {version} is not known")
    backing = _name(head, name_at, name_size) if name_at else ""
    if version == 2 or len(head) < 104:
        return References(backing)
    (incompatible,) = struct.unpack_from(">Q", head, 72)
    (at,) = struct.unpack_from(">I", head, 100)
    data_file = ""
    while at + 8 <= min(len(head), name_at or len(head)):
        kind, size = struct.unpack_from(">II", head, at)
        if kind == 0:
            break
        if kind == QCOW2_DATA_FILE:
            data_file = _name(head, at + 8, size)
        at += 8 + (size + 7 & ~7)
    if incompatible & QCOW2_DATA_FILE_BIT and not data_file:
        raise RescueError("it keeps its data in another file and does not say in which")
    return References(backing, (data_file,) if data_file else ())


def _name(head: bytes, at: int, size: int) -> str:
    if size > QCOW2_NAME_LIMIT or at + size > len(head):
        raise RescueError("its qcow2 header is damaged: a file name lies outside of it")
    return head[at : at + size].decode("utf-8", "surrogateescape")


def _vmdk_references(head: bytes) -> References:
    descriptor = head
    embedded = head.startswith(b"KDMV")
    if head.startswith(b"COWD"):
        return References()
    if embedded:
        if len(head) < 512:
            raise RescueError("its VMDK header is cut off")
        start, sectors = struct.unpack_from("<QQ", head, 28)
        if sectors * 512 > _VMDK_DESCRIPTOR_LIMIT or start * 512 > len(head):
            raise RescueError("its VMDK header is damaged: the descriptor lies outside of it")
        descriptor = head[start * 512 : (start + sectors) * 512]
    text = descriptor.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    parent = _VMDK_PARENT.search(text)
    # A sparse VMDK with an embedded descriptor names itself there; QEMU does not look it up.
    extents = () if embedded else tuple(name for kind, name in _VMDK_EXTENT.findall(text) if kind != "ZERO")
    return References(parent[1] if parent else "", extents)


def refuse_reason(name: str) -> str:
    """Return why QEMU must not be given this reference of an image, or an empty string.

    Only plain file names pass. QEMU reads ``proto:rest`` as an address and ``json:{…}`` as a
    whole configuration of its own.
    """
    if not name:
        return "it names an empty file name"
    if "\0" in name or not name.isprintable():
        return f"it names {printable(name)!r}, which is no plain file name"
    first = name.split("/", 1)[0]
    if ":" in first:
        return f"it names {name!r}, which is an address and not a file"
    return ""
