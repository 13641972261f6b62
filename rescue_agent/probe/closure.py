# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a program of the patient could start: its interpreter and every library, found as ld.so(8)
finds them, inside the patient and without running anything of it.

Not looked at: ``LD_LIBRARY_PATH``, ``/etc/ld.so.preload`` and what a program opens later by dlopen(3).
``/etc/ld.so.cache`` is not believed; the folders of ``/etc/ld.so.conf`` that it is made from are.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import posixpath
import stat
from collections import deque
from typing import IO, NamedTuple

from rescue_agent.errors import UnsafePath
from rescue_agent.model.document import printable
from rescue_agent.model.facts import ElfFault, Program
from rescue_agent.probe.elf import Abi, BadElf, ElfObject, read_elf
from rescue_agent.system.root import MAX_LINKS, TargetRoot

MAX_OBJECTS = 2000
MAX_SCRIPTS = 5
"""How often a script's interpreter may be a script itself (Linux stops after 5: fs/exec.c)."""

MULTIARCH = {
    ("EM_X86_64", 64): "x86_64-linux-gnu",
    ("EM_X86_64", 32): "x86_64-linux-gnux32",
    ("EM_386", 32): "i386-linux-gnu",
    ("EM_AARCH64", 64): "aarch64-linux-gnu",
    ("EM_ARM", 32): "arm-linux-gnueabihf",
    ("EM_PPC64", 64): "powerpc64le-linux-gnu",
    ("EM_S390", 64): "s390x-linux-gnu",
    ("EM_RISCV", 64): "riscv64-linux-gnu",
    ("EM_LOONGARCH", 64): "loongarch64-linux-gnu",
    ("EM_MIPS", 64): "mips64el-linux-gnuabi64",
    ("EM_MIPS", 32): "mipsel-linux-gnu",
}
"""Debian's folder of libraries per machine (https://wiki.debian.org/Multiarch/Tuples)."""

_BAD_CODES = {errno.EIO: "unreadable", errno.ELOOP: "link-loop"}


class _Object(NamedTuple):
    """A file that was looked at; exactly one of ``elf``, ``script`` and ``fault`` is set."""

    path: str
    """Where it really lies in the patient."""
    mode: int
    elf: ElfObject | None = None
    script: str = ""
    """The interpreter that its first line names."""
    fault: str = ""


class _Pending(NamedTuple):
    """An object whose libraries are to be found. ``rpaths``: of itself and of what loaded it."""

    object: _Object
    rpaths: tuple[str, ...]


class Closures:
    """Answers for one root. What was read once is kept, since programs share their libraries."""

    def __init__(self, root: TargetRoot) -> None:
        self._root = root
        self._by_path: dict[str, _Object | None] = {}
        self._by_inode: dict[tuple[int, int], _Object] = {}
        self._default_folders: dict[Abi, tuple[str, ...]] = {}
        self._variants: dict[str, tuple[str, ...]] = {}
        self._found: dict[tuple[Abi, str], _Object | None] = {}
        self._configured: tuple[str, ...] | None = None

    def program(self, name: str) -> Program:
        """Return the program called ``name`` with its whole closure and everything wrong with it."""
        objects: dict[str, None] = {}
        faults: dict[ElfFault, None] = {}
        self._start(name, "", objects, faults, 0)
        first = self._by_path.get(name)
        return Program(
            name=name,
            path=printable(first.path) if first else "",
            objects=tuple(printable(path) for path in objects),
            faults=tuple(faults),
        )

    def abi(self, name: str) -> Abi | None:
        """Return what a program was built for; None when it is no ELF file."""
        found = self._look(name)
        return found.elf.abi if found and found.elf else None

    def _leads_to(self, path: str) -> str:
        return follow(self._root, path) or path

    # --- programs --------------------------------------------------------------------------

    def _start(
        self, name: str, needed_by: str, objects: dict[str, None], faults: dict[ElfFault, None], depth: int
    ) -> None:
        """What execve(2) does with ``name``."""
        found = self._look(name)
        if found is None:
            lies = self._leads_to(name)
            kind = "missing-interpreter" if needed_by else "missing"
            faults[_fault(kind, name if needed_by else lies, needed_by, lies)] = None
            return
        if not found.fault and not found.mode & 0o111:
            faults[_fault("not-executable", found.path, needed_by)] = None
        if found.fault:
            faults[_fault(found.fault, found.path, needed_by)] = None
        elif found.script:
            objects[found.path] = None
            if depth < MAX_SCRIPTS:
                self._start(found.script, found.path, objects, faults, depth + 1)
        else:
            self._load(found, objects, faults)

    def _load(self, program: _Object, objects: dict[str, None], faults: dict[ElfFault, None]) -> None:
        """What the kernel and ld.so(8) do with an ELF program, breadth first."""
        assert program.elf is not None
        abi = program.elf.abi
        objects[program.path] = None
        loaded: set[str] = set()
        if self._is_alone(program, abi):
            faults[_fault("wrong-architecture", program.path, "")] = None
            return
        if program.elf.interpreter:
            self._load_interpreter(program, abi, objects, faults, loaded)
        waiting = deque([_Pending(program, _origin(program.elf.rpath, program.path))])
        while waiting and len(loaded) < MAX_OBJECTS:
            item = waiting.popleft()
            assert item.object.elf is not None
            for wanted in item.object.elf.needed:
                if wanted in loaded:
                    continue
                loaded.add(wanted)
                found = self._find(wanted, item, abi)
                if found is None:
                    faults[
                        _fault("missing-library", wanted, item.object.path, self._dangling(wanted, abi))
                    ] = None
                    continue
                if found.elf is None:
                    faults[_fault(_as_library(found), found.path, item.object.path)] = None
                    continue
                if found.elf.abi != abi:
                    faults[_fault("wrong-architecture", found.path, item.object.path)] = None
                    continue
                loaded.add(found.elf.soname)
                if found.path not in objects:
                    objects[found.path] = None
                    waiting.append(_Pending(found, (*_origin(found.elf.rpath, found.path), *item.rpaths)))
                for variant in self._faster_variants(wanted, abi):
                    objects[variant.path] = None
                    if variant.fault:
                        faults[_fault(_as_library(variant), variant.path, item.object.path)] = None

    def _is_alone(self, program: _Object, abi: Abi) -> bool:
        """Return whether the program itself is for another machine: its loader and every library of
        it that is here are for one other."""
        assert program.elf is not None
        loader = self._look(program.elf.interpreter) if program.elf.interpreter else None
        if loader is None or loader.elf is None or loader.elf.abi == abi:
            return False
        start = _Pending(program, _origin(program.elf.rpath, program.path))
        found = [self._find(name, start, abi) for name in program.elf.needed]
        kinds = {item.elf.abi for item in found if item is not None and item.elf is not None}
        return loader.elf.abi in kinds and abi not in kinds

    def _load_interpreter(
        self,
        program: _Object,
        abi: Abi,
        objects: dict[str, None],
        faults: dict[ElfFault, None],
        loaded: set[str],
    ) -> None:
        assert program.elf is not None
        name = program.elf.interpreter
        found = self._look(name)
        if found is None:
            faults[_fault("missing-interpreter", name, program.path, self._leads_to(name))] = None
        elif found.elf is None:
            faults[_fault(_as_library(found), found.path, program.path)] = None
        elif found.elf.abi != abi:
            faults[_fault("wrong-architecture", found.path, program.path)] = None
        else:
            if not found.mode & 0o111:
                faults[_fault("not-executable", found.path, program.path)] = None
            objects[found.path] = None
            loaded |= {found.elf.soname, posixpath.basename(name)}

    # --- libraries ---------------------------------------------------------------------------

    def _find(self, wanted: str, item: _Pending, abi: Abi) -> _Object | None:
        """Return the file that ld.so takes for a needed name; of another machine when only such exist."""
        assert item.object.elf is not None
        if "/" in wanted:
            paths = _origin((wanted,), item.object.path)
            return self._look(self._expand(paths[0], abi))
        runpath = item.object.elf.runpath
        # DT_RUNPATH makes DT_RPATH void, its own and that of the objects above it (ld.so(8)).
        special = _origin(runpath, item.object.path) if runpath else item.rpaths
        strange = None
        for folder in special:
            found = self._look(posixpath.join(self._expand(folder, abi), wanted))
            if found is not None:
                if found.elf is None or found.elf.abi == abi:
                    return found
                strange = strange or found
        return self._find_by_default(wanted, abi) or strange

    def _find_by_default(self, wanted: str, abi: Abi) -> _Object | None:
        key = (abi, wanted)
        if key not in self._found:
            strange = None
            for folder in self._folders(abi):
                found = self._look(posixpath.join(folder, wanted))
                if found is not None and (found.elf is None or found.elf.abi == abi):
                    break
                # ld.so goes on when class or machine differ (dl-load.c, open_verify)
                strange = strange or found
            else:
                found = next(iter(self._faster_variants(wanted, abi)), None) or strange
            self._found[key] = found
        return self._found[key]

    def _faster_variants(self, wanted: str, abi: Abi) -> tuple[_Object, ...]:
        """Return the builds of a library for newer processors (glibc-hwcaps); which of them the
        patient's processor takes is not known here, so each of them must be sound."""
        found = []
        for folder in self._folders(abi):
            if folder not in self._variants:
                base = posixpath.join(folder, "glibc-hwcaps")
                self._variants[folder] = tuple(
                    posixpath.join(base, name) for name in self._root.names(base)[:16]
                )
            for variant in self._variants[folder]:
                item = self._look(posixpath.join(variant, wanted))
                if item is not None and (item.elf is None or item.elf.abi == abi):
                    found.append(item)
        return tuple(found)

    def _folders(self, abi: Abi) -> tuple[str, ...]:
        """Return the folders that are searched for every object, in order, each real folder once."""
        if abi not in self._default_folders:
            if self._configured is None:
                self._configured = configured_folders(self._root)
            tuple_name = MULTIARCH.get(abi[:2])
            wanted = [*self._configured]
            if tuple_name:
                wanted += [f"/lib/{tuple_name}", f"/usr/lib/{tuple_name}"]
            if abi.bits == 64:
                wanted += ["/lib64", "/usr/lib64"]
            wanted += ["/lib", "/usr/lib"]
            real: dict[str, None] = {}
            for folder in wanted:
                try:
                    real[self._root.resolve(folder)] = None
                except (OSError, UnsafePath):
                    continue
            self._default_folders[abi] = tuple(real)
        return self._default_folders[abi]

    @staticmethod
    def _expand(folder: str, abi: Abi) -> str:
        """Return a search path with $LIB and $PLATFORM replaced; $ORIGIN is by now."""
        if "$" not in folder:
            return folder
        library = f"lib/{MULTIARCH[abi[:2]]}" if abi[:2] in MULTIARCH else "lib"
        platform = abi.machine.removeprefix("EM_").lower()
        for name, value in (("LIB", library), ("PLATFORM", platform)):
            folder = folder.replace(f"${{{name}}}", value).replace(f"${name}", value)
        return folder

    def _dangling(self, wanted: str, abi: Abi) -> str:
        """Return where a missing library ought to lie: the target of its link, when that is there."""
        for folder in self._folders(abi):
            path = posixpath.join(folder, wanted)
            if "/" not in wanted and self._root.lexists(path):
                return self._leads_to(path)
        return ""

    # --- files -------------------------------------------------------------------------------

    def _look(self, path: str) -> _Object | None:
        """Return what lies at ``path``; None when there is nothing."""
        if path not in self._by_path:
            self._by_path[path] = self._read(path)
        return self._by_path[path]

    def _read(self, path: str) -> _Object | None:
        try:
            descriptor = self._root.open(path)
        except OSError as error:
            if error.errno in _BAD_CODES:
                return _Object(path, 0, fault=_BAD_CODES[error.errno])
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL):
                return None
            return self._strange(path)
        except ValueError:  # a NUL in a name that an ELF file or a link gave
            return None
        try:
            state = os.fstat(descriptor)
            key = (state.st_dev, state.st_ino)
            if key not in self._by_inode:
                real = self._root.resolve(path)
                if stat.S_ISREG(state.st_mode):
                    with os.fdopen(os.dup(descriptor), "rb") as file:
                        self._by_inode[key] = _read_object(file, real, state.st_mode)
                else:
                    self._by_inode[key] = _Object(real, state.st_mode, fault="not-executable")
            return self._by_inode[key]
        finally:
            os.close(descriptor)

    def _strange(self, path: str) -> _Object:
        """Something that cannot even be opened: a socket, a device on a mount without devices."""
        try:
            mode = self._root.stat(path).st_mode
        except (OSError, UnsafePath):
            return _Object(path, 0, fault="unreadable")
        return _Object(path, mode, fault="unreadable" if stat.S_ISREG(mode) else "not-executable")


def follow(root: TargetRoot, path: str) -> str:
    """Return where ``path`` leads inside the root, whether or not anything lies there.

    Empty when its links go round in a circle.
    """
    for _ in range(MAX_LINKS):
        folder, _, name = path.rstrip("/").rpartition("/")
        try:
            folder = root.resolve(folder or "/")
            path = posixpath.join(folder, name)
            target = root.readlink(path)
        except (OSError, UnsafePath) as error:
            return "" if isinstance(error, OSError) and error.errno == errno.ELOOP else path
        path = posixpath.normpath(posixpath.join(folder, target))
    return ""


def _read_object(file: IO[bytes], path: str, mode: int) -> _Object:
    try:
        start = file.read(4)
        if start.startswith(b"#!"):
            line = (start + file.read(254)).split(b"\n", 1)[0]
            words = line[2:].split()
            if not words or not words[0].startswith(b"/"):
                return _Object(path, mode, fault="not-elf")
            return _Object(path, mode, script=words[0].decode("utf-8", "surrogateescape"))
        file.seek(0)
        return _Object(path, mode, elf=read_elf(file))
    except BadElf as error:
        return _Object(path, mode, fault=error.kind)
    except OSError:
        return _Object(path, mode, fault="unreadable")


def _fault(kind: str, path: str, needed_by: str, expected: str = "") -> ElfFault:
    return ElfFault(
        kind=kind,  # type: ignore[arg-type]
        path=printable(path),
        needed_by=printable(needed_by),
        expected=printable(expected),
    )


def _as_library(found: _Object) -> str:
    """Return what is wrong with something that stands where a library should."""
    return found.fault if found.fault not in ("", "not-executable") else "not-elf"


def _origin(paths: tuple[str, ...], path: str) -> tuple[str, ...]:
    folder = posixpath.dirname(path)
    return tuple(p.replace("${ORIGIN}", folder).replace("$ORIGIN", folder) for p in paths)


# --- /etc/ld.so.conf -----------------------------------------------------------------------------


def parse_ld_so_conf(text: str) -> tuple[tuple[str, str], ...]:
    """Return what counts in an ld.so.conf (ldconfig(8)): ("folder", path) or ("include", pattern)."""
    found = []
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        words = line.split()
        if words[:1] == ["include"]:
            found += [("include", pattern) for pattern in words[1:]]
        elif line.startswith("/"):
            found.append(("folder", line.split("=", 1)[0].strip()))
    return tuple(found)


def configured_folders(root: TargetRoot) -> tuple[str, ...]:
    """Return the library folders that the patient's /etc/ld.so.conf names, includes resolved."""
    folders: dict[str, None] = {}
    seen: set[str] = set()
    waiting = deque(["/etc/ld.so.conf"])
    while waiting and len(seen) < 256 and len(folders) < 256:
        path = waiting.popleft()
        if path in seen:
            continue
        seen.add(path)
        try:
            text = root.read_text(path, 1 << 18)
        except (OSError, UnsafePath):
            continue
        for kind, argument in parse_ld_so_conf(text):
            if kind == "folder":
                folders[argument] = None
                continue
            folder, _, pattern = posixpath.join(posixpath.dirname(path), argument).rpartition("/")
            names = root.names(folder)[:1024]
            waiting.extend(f"{folder}/{name}" for name in names if fnmatch.fnmatchcase(name, pattern))
    return tuple(folders)
