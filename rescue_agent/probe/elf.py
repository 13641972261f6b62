# SPDX-License-Identifier: GPL-3.0-or-later
"""One ELF file: what the loader needs to know of it, and why it could not be loaded (elf(5)).

Structures come from pyelftools; the dynamic table is unpacked at once, since a root has hundreds.
The file is hostile: every count and offset is checked against its size before it is used.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import IO, Literal, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.enums import ENUM_D_TAG_COMMON
from elftools.elf.structs import ELFStructs

FaultKind = Literal["not-elf", "truncated"]

MAX_SEGMENTS = 1024
MAX_DYNAMIC_BYTES = 1 << 16
MAX_NEEDED = 512
MAX_NAME = 4096
_EI_CLASS, _EI_DATA = 4, 5  # e_ident indexes, elf.h
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = (
    int(ENUM_D_TAG_COMMON[name])
    for name in ("DT_NEEDED", "DT_STRTAB", "DT_STRSZ", "DT_SONAME", "DT_RPATH", "DT_RUNPATH")
)


class BadElf(Exception):
    """The loader would refuse the file."""

    def __init__(self, kind: FaultKind, reason: str) -> None:
        super().__init__(reason)
        self.kind: FaultKind = kind


class Abi(NamedTuple):
    """What must be equal for two objects to live in one process."""

    machine: str
    """``EM_X86_64``, … as elf.h names it, or its number."""
    bits: int
    little_endian: bool


class ElfObject(NamedTuple):
    """The parts of an ELF file that ld.so(8) and execve(2) read."""

    abi: Abi
    interpreter: str
    soname: str
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


class _Segment(NamedTuple):
    type: str
    offset: int
    address: int
    file_size: int


@lru_cache(maxsize=8)
def _structs(bits: int, little_endian: bool) -> ELFStructs:
    structs = ELFStructs(little_endian=little_endian, elfclass=bits)
    structs.create_basic_structs()
    structs.create_advanced_structs()
    return structs


def read_elf(file: IO[bytes]) -> ElfObject:
    """Return what the loader needs to know of an executable or shared library.

    Raises BadElf when it is no ELF file, or when its tables or loaded segments lie beyond its end.
    """
    size = os.fstat(file.fileno()).st_size
    ident = file.read(16)
    if ident[:4] != b"\x7fELF":
        raise BadElf("not-elf", "empty" if not size else "no ELF header")
    if len(ident) < 16 or ident[_EI_CLASS] not in (1, 2) or ident[_EI_DATA] not in (1, 2):
        raise BadElf("not-elf", "the ELF header is damaged")
    bits, little = 32 * ident[_EI_CLASS], ident[_EI_DATA] == 1
    try:
        return _read(file, size, _structs(bits, little), bits, little)
    except (ELFError, struct.error, KeyError, ValueError, OverflowError) as error:
        raise BadElf("not-elf", f"the ELF header is damaged: {type(error).__name__}") from error


def _read(file: IO[bytes], size: int, structs: ELFStructs, bits: int, little: bool) -> ElfObject:
    if size < (64 if bits == 64 else 52):
        raise BadElf("truncated", "it ends within the ELF header")
    header = struct_parse(structs.Elf_Ehdr, file, stream_pos=0)
    count, entry = int(header["e_phnum"]), int(header["e_phentsize"])
    if not count or entry != structs.Elf_Phdr.sizeof():
        raise BadElf("not-elf", "it has no program headers")
    if count > MAX_SEGMENTS:
        raise BadElf("not-elf", f"{count} program headers cannot be right")
    if header["e_phoff"] + count * entry > size:
        raise BadElf("truncated", "its program headers lie beyond its end")
    segments = []
    for index in range(count):
        raw = struct_parse(structs.Elf_Phdr, file, stream_pos=header["e_phoff"] + index * entry)
        segments.append(_Segment(str(raw["p_type"]), raw["p_offset"], raw["p_vaddr"], raw["p_filesz"]))
    for segment in segments:
        if (
            segment.type in ("PT_LOAD", "PT_DYNAMIC", "PT_INTERP")
            and segment.offset + segment.file_size > size
        ):
            raise BadElf(
                "truncated", f"{segment.offset + segment.file_size - size} bytes are missing at its end"
            )
    # Nothing needs the section table at run time, but it is the last thing in a file: a shorter
    # file has lost its end.
    if header["e_shoff"] and header["e_shoff"] + header["e_shnum"] * header["e_shentsize"] > size:
        raise BadElf("truncated", "its section table lies beyond its end")
    tags, names = _dynamic(file, segments, bits, little)
    return ElfObject(
        abi=Abi(str(header["e_machine"]), bits, little),
        interpreter=_interpreter(file, segments),
        soname=next((names(value) for tag, value in tags if tag == _DT_SONAME), ""),
        needed=tuple(names(value) for tag, value in tags if tag == _DT_NEEDED)[:MAX_NEEDED],
        rpath=_paths(names(value) for tag, value in tags if tag == _DT_RPATH),
        runpath=_paths(names(value) for tag, value in tags if tag == _DT_RUNPATH),
    )


def _interpreter(file: IO[bytes], segments: list[_Segment]) -> str:
    for segment in segments:
        if segment.type == "PT_INTERP":
            file.seek(segment.offset)
            data = file.read(min(segment.file_size, MAX_NAME)).split(b"\0", 1)[0]
            if not data.startswith(b"/"):
                raise BadElf("not-elf", "its interpreter is not named by a path")
            return data.decode("utf-8", "surrogateescape")
    return ""


class _Names:
    """The dynamic string table."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __call__(self, offset: int) -> str:
        end = self._data.find(b"\0", offset, offset + MAX_NAME)
        if offset >= len(self._data) or end < 0:
            raise BadElf("not-elf", "its dynamic section is damaged")
        return self._data[offset:end].decode("utf-8", "surrogateescape")


def _dynamic(
    file: IO[bytes], segments: list[_Segment], bits: int, little: bool
) -> tuple[list[tuple[int, int]], _Names]:
    """Return the tags of the dynamic section and its names; none for a static program."""
    table = next((s for s in segments if s.type == "PT_DYNAMIC"), None)
    if table is None or not table.file_size:
        return [], _Names(b"")
    pair = struct.Struct(("<" if little else ">") + ("qQ" if bits == 64 else "iI"))
    file.seek(table.offset)
    data = file.read(min(table.file_size, MAX_DYNAMIC_BYTES))
    tags = []
    for tag, value in pair.iter_unpack(data[: len(data) // pair.size * pair.size]):
        if tag == 0:
            break
        tags.append((tag, value))
    address = next((value for tag, value in tags if tag == _DT_STRTAB), None)
    length = next((value for tag, value in tags if tag == _DT_STRSZ), 0)
    if address is None:
        # A static position-independent program has one too; only zeros instead of it are a fault.
        raise BadElf("not-elf", "its dynamic section is damaged")
    for segment in segments:
        inside = address - segment.address
        if segment.type == "PT_LOAD" and 0 <= inside < segment.file_size:
            file.seek(segment.offset + inside)
            return tags, _Names(file.read(min(length, segment.file_size - inside, 1 << 24)))
    raise BadElf("not-elf", "its dynamic section is damaged")


def _paths(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(part for value in values for part in value.split(":") if part)
