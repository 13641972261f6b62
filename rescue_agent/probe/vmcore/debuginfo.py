# SPDX-License-Identifier: GPL-3.0-or-later
"""The debug kernel that the person named: a vmlinux, or the one inside a debuginfo package."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import IO

from rescue_agent.errors import CommandFailed, UsageError
from rescue_agent.probe.vmcore.elfcore import MAGIC, notes, programs
from rescue_agent.probe.vmcore.source import Source, Unreadable, open_file
from rescue_agent.probe.vmcore.unpack import free_bytes
from rescue_agent.system.runner import Runner
from rescue_agent.system.tools import require

_DEB, _RPM = b"!<arch>\n", b"\xed\xab\xee\xdb"
_UNPACK_TIMEOUT_S = 1800.0
_PT_NOTE, _NT_GNU_BUILD_ID = 4, 3
_MAX_BUILD_ID = 64
_VMLINUX = re.compile(r"(?:\./|/)?usr/lib/debug/(?:boot/vmlinux-[^/]+|lib/modules/[^/]+/vmlinux)\Z")
_HINT = (
    "name the vmlinux with debug information of exactly that kernel, or its package: "
    "linux-image-VERSION-dbg (Debian), linux-image-VERSION-dbgsym (Ubuntu), kernel-debuginfo (RHEL)"
)


def find_vmlinux(runner: Runner, path: str, folder: Path) -> Path:
    """Return a vmlinux: the file itself, or the one member of a .deb or .rpm, unpacked into ``folder``.

    Raises UsageError when the file is none of these or holds no debug kernel, ToolMissing without the
    package tool.
    """
    with open_file(Path(path)) as file:
        head = file.read(0, 8)
    absolute = os.path.abspath(path)
    if head.startswith(MAGIC):
        return Path(absolute)
    if head.startswith(_DEB):
        argv, stdin = ("dpkg-deb", "--fsys-tarfile", absolute), os.devnull
    elif head.startswith(_RPM):
        argv, stdin = ("rpm2archive", "-n", "-"), absolute
    else:
        raise UsageError(f"{path} is neither a vmlinux nor a .deb or .rpm package", hint=_HINT)
    require(runner, argv[0])
    target = folder / "vmlinux"
    try:
        with runner.stream(argv, timeout_s=_UNPACK_TIMEOUT_S, stdin=stdin) as stream:
            found = _unpack_member(stream, target, path)
    except (CommandFailed, tarfile.TarError, EOFError) as error:
        raise UsageError(f"{path} cannot be unpacked: {error}", hint="download it again") from error
    if not found:
        raise UsageError(f"{path} holds no debug kernel (usr/lib/debug/…/vmlinux)", hint=_HINT)
    return target


def _unpack_member(stream: IO[bytes], target: Path, path: str) -> bool:
    with tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as members:
        for member in members:
            content = members.extractfile(member) if member.isreg() and _VMLINUX.match(member.name) else None
            if content is None:
                continue
            if member.size > free_bytes(target.parent):
                raise UsageError(
                    f"{path}: its debug kernel of {member.size >> 20} MiB does not fit into {target.parent}",
                    hint="make room there, or unpack the vmlinux elsewhere and name that",
                )
            with open(target, "wb") as out:
                shutil.copyfileobj(content, out, 1 << 20)
            return True
    return False


def find_build_id(vmlinux: Path) -> str:
    """Return the build-id of a kernel image in hexadecimal; empty when it has none."""
    with open_file(vmlinux) as file:
        try:
            return _build_id(file)
        except Unreadable as error:
            raise UsageError(f"{vmlinux} is no kernel image: {error}", hint=_HINT) from error


def _build_id(source: Source) -> str:
    for program in programs(source)[2]:
        if program.type == _PT_NOTE:
            for note in notes(source, program.offset, program.file_size):
                if (note.name, note.type) == (b"GNU", _NT_GNU_BUILD_ID) and note.size <= _MAX_BUILD_ID:
                    return source.read(note.offset, note.size).hex()
    return ""
