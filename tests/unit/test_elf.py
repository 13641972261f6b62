# SPDX-License-Identifier: GPL-3.0-or-later
"""ELF files, real and hostile; a root made of small ones that the test writes itself."""

from __future__ import annotations

import io
import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescue_agent.probe.closure import Closures
from rescue_agent.probe.elf import BadElf, ElfObject, read_elf
from rescue_agent.system.root import TargetRoot

X86_64, AARCH64, I386 = 62, 183, 3


def elf(
    *,
    needed: tuple[str, ...] = (),
    rpath: str = "",
    runpath: str = "",
    soname: str = "",
    interpreter: str = "",
    machine: int = X86_64,
) -> bytes:
    """A little-endian 64-bit ELF file of one loaded segment (elf(5)); i386 as a 32-bit one."""
    wide = machine != I386
    strings = b"\0"
    tags: list[tuple[int, int]] = []

    def text(tag: int, value: str) -> None:
        nonlocal strings
        tags.append((tag, len(strings)))
        strings += value.encode() + b"\0"

    for name in needed:
        text(1, name)
    for tag, value in ((14, soname), (15, rpath), (29, runpath)):
        if value:
            text(tag, value)
    headers = 3 if interpreter else 2
    start = (64 + 56 * headers) if wide else (52 + 32 * headers)
    path = interpreter.encode() + b"\0" if interpreter else b""
    at_strings = start + len(path)
    at_dynamic = at_strings + len(strings)
    tags += [(5, at_strings), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack("<qQ" if wide else "<iI", *tag) for tag in tags)
    end = at_dynamic + len(dynamic)

    def segment(kind: int, offset: int, size: int) -> bytes:
        if wide:
            return struct.pack("<IIQQQQQQ", kind, 5, offset, offset, offset, size, size, 8)
        return struct.pack("<IIIIIIII", kind, offset, offset, offset, size, size, 5, 4)

    form = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
    sizes = (64, 56) if wide else (52, 32)
    header = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    header += struct.pack(form, 3, machine, 1, 0, sizes[0], 0, 0, sizes[0], sizes[1], headers, 0, 0, 0)
    table = segment(1, 0, end)
    if interpreter:
        table += segment(3, start, len(path))
    table += segment(2, at_dynamic, len(dynamic))
    return header + table + path + strings + dynamic


def parsed(tmp_path: Path, data: bytes) -> ElfObject:
    file = tmp_path / "x"
    file.write_bytes(data)
    with open(file, "rb") as opened:
        return read_elf(opened)


def test_what_is_in_a_file(tmp_path: Path) -> None:
    found = parsed(
        tmp_path, elf(needed=("a", "b"), rpath="/x:/y", runpath="$ORIGIN", soname="s", interpreter="/i")
    )
    assert (found.needed, found.rpath, found.runpath, found.soname, found.interpreter) == (
        ("a", "b"),
        ("/x", "/y"),
        ("$ORIGIN",),
        "s",
        "/i",
    )
    assert found.abi == ("EM_X86_64", 64, True)
    assert parsed(tmp_path, elf(machine=I386, needed=("a",))).abi == ("EM_386", 32, True)


def test_the_interpreter_that_runs_this(tmp_path: Path) -> None:
    with open(os.path.realpath(sys.executable), "rb") as file:
        found = read_elf(file)
    assert found.interpreter and any(name.startswith("libc.") for name in found.needed)


@settings(deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=40))
def test_a_spoiled_file_is_read_or_refused(at: int, junk: bytes) -> None:
    data = bytearray(elf(needed=("libc.so.6",), runpath="/a:/b", interpreter="/lib/ld.so"))
    data[at : at + len(junk)] = junk
    read, write = os.memfd_create("elf"), bytes(data)
    with os.fdopen(read, "w+b") as file:
        file.write(write)
        file.seek(0)
        try:
            assert isinstance(read_elf(file), ElfObject)
        except BadElf as error:
            assert error.kind in ("not-elf", "truncated") and str(error)


@pytest.mark.parametrize("size", [0, 3, 15])
def test_too_short_for_a_header(tmp_path: Path, size: int) -> None:
    with pytest.raises(BadElf, match=r"header|empty") as caught:
        parsed(tmp_path, elf()[:size])
    assert caught.value.kind == "not-elf"


@pytest.mark.parametrize("size", [20, 63, 64, 120, 200])
def test_cut_off(tmp_path: Path, size: int) -> None:
    with pytest.raises(BadElf) as caught:
        parsed(tmp_path, elf(needed=("libc.so.6", "libm.so.6"))[:size])
    assert caught.value.kind == "truncated"


def test_a_count_that_cannot_be_right(tmp_path: Path) -> None:
    data = bytearray(elf())
    data[56:58] = b"\xff\xff"  # e_phnum
    with pytest.raises(BadElf, match="65535 program headers"):
        parsed(tmp_path, bytes(data))


def test_a_file_that_grows_no_names(tmp_path: Path) -> None:
    with pytest.raises(BadElf, match="dynamic section"):
        data = elf(needed=("libc.so.6",))
        parsed(tmp_path, data.replace(struct.pack("<qQ", 1, 1), struct.pack("<qQ", 1, 1 << 40)))


def test_only_regular_files_need_a_descriptor() -> None:
    with pytest.raises(io.UnsupportedOperation):
        read_elf(io.BytesIO(elf()))


# --- closures -------------------------------------------------------------------------------------


class Tree:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.put("lib64/ld.so", elf(soname="ld.so"))

    def put(self, path: str, data: bytes, mode: int = 0o755) -> Tree:
        place = self.path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        place.chmod(mode)
        return self

    def faults(self, name: str) -> list[tuple[str, str]]:
        with TargetRoot(self.path) as root:
            return [(f.kind, f.path) for f in Closures(root).program(name).faults]

    def objects(self, name: str) -> tuple[str, ...]:
        with TargetRoot(self.path) as root:
            return Closures(root).program(name).objects


def main(**more: object) -> bytes:
    return elf(interpreter="/lib64/ld.so", **more)  # type: ignore[arg-type]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_breadth_first_and_each_once(tree: Tree) -> None:
    tree.put("bin/x", main(needed=("a", "b"))).put("lib/a", elf(needed=("c", "b"))).put(
        "lib/b", elf(needed=("a",))
    )
    tree.put("usr/lib/c", elf(needed=("ld.so",)))
    assert tree.objects("/bin/x") == ("/bin/x", "/lib64/ld.so", "/lib/a", "/lib/b", "/usr/lib/c")
    assert tree.faults("/bin/x") == []


def test_origin_in_runpath(tree: Tree) -> None:
    tree.put("opt/app/bin/x", main(needed=("own",), runpath="$ORIGIN/../${LIB}:/nowhere"))
    tree.put("opt/app/lib/x86_64-linux-gnu/own", elf())
    assert tree.faults("/opt/app/bin/x") == []


def test_rpath_counts_for_what_is_loaded_through_it_and_runpath_does_not(tree: Tree) -> None:
    tree.put("opt/a", elf(needed=("b",))).put("opt/b", elf())
    tree.put("bin/x", main(needed=("a",), rpath="/opt"))
    assert tree.faults("/bin/x") == []
    tree.put("bin/x", main(needed=("a",), runpath="/opt"))
    assert tree.faults("/bin/x") == [("missing-library", "b")]


def test_runpath_makes_rpath_void(tree: Tree) -> None:
    tree.put("opt/a", elf())
    tree.put("bin/x", main(needed=("a",), rpath="/opt", runpath="/nowhere"))
    assert tree.faults("/bin/x") == [("missing-library", "a")]


def test_a_namesake_of_another_class_is_passed_over(tree: Tree) -> None:
    tree.put("bin/x", main(needed=("a",))).put("lib64/a", elf(machine=I386)).put("usr/lib/a", elf())
    assert tree.objects("/bin/x")[-1] == "/usr/lib/a"
    (tree.path / "usr/lib/a").unlink()
    assert tree.faults("/bin/x") == [("wrong-architecture", "/lib64/a")]


def test_a_needed_path(tree: Tree) -> None:
    tree.put("bin/x", main(needed=("/opt/a", "$ORIGIN/b"))).put("opt/a", elf()).put("bin/b", elf())
    assert tree.faults("/bin/x") == []


def test_a_wrong_interpreter(tree: Tree) -> None:
    tree.put("bin/x", main()).put("lib64/ld.so", elf(machine=AARCH64))
    assert tree.faults("/bin/x") == [("wrong-architecture", "/lib64/ld.so")]
    tree.put("lib64/ld.so", elf(), 0o644)
    assert tree.faults("/bin/x") == [("not-executable", "/lib64/ld.so")]


def test_a_static_program(tree: Tree) -> None:
    data = elf()
    tree.put("bin/x", data[:64] + data[64:])
    assert tree.objects("/bin/x") == ("/bin/x",) and tree.faults("/bin/x") == []


def test_ten_thousand_libraries_that_need_each_other_end(tree: Tree) -> None:
    """One file under many names, each asking for names that lead back to it."""
    many = tuple(f"l{n}" for n in range(3000))
    tree.put("bin/x", main(needed=many[:2])).put("lib/real", elf(needed=many))
    for name in many:
        (tree.path / "lib" / name).symlink_to("real")
    assert tree.objects("/bin/x") == ("/bin/x", "/lib64/ld.so", "/lib/real")


def test_names_with_control_characters_are_made_printable(tree: Tree) -> None:
    tree.put("bin/x", main(needed=("\x1b[2Jlib", "..")))
    faults = tree.faults("/bin/x")
    assert ("missing-library", "\\x1b[2Jlib") in faults and len(faults) == 2
