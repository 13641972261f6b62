# SPDX-License-Identifier: GPL-3.0-or-later
"""What the loader would find in a real root, held against what it does find: ``chroot T /bin/true``."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import roots
from lab.faults import real

from rescue_agent.model.facts import ElfFault, Program
from rescue_agent.probe import installed
from rescue_agent.probe.closure import Closures, configured_folders
from rescue_agent.system.root import TargetRoot

pytestmark = pytest.mark.root

LIB = "usr/lib/x86_64-linux-gnu"
SYSTEMD = "/usr/lib/systemd/systemd"
LOADER = "/lib64/ld-linux-x86-64.so.2"


@pytest.fixture
def tree(work: Path) -> Iterator[Path]:
    with roots.fresh_tree(work) as tree:
        yield tree


def program(tree: Path, name: str = "/sbin/init") -> Program:
    with TargetRoot(tree) as root:
        return Closures(root).program(name)


def kinds(found: Program) -> set[tuple[str, str]]:
    return {(f.kind, f.path) for f in found.faults}


def loader_list(tree: Path, path: str) -> set[str]:
    """The files that the patient's own loader maps for a program, links resolved."""
    done = subprocess.run(
        ["chroot", tree, LOADER, "--list", path], capture_output=True, text=True, check=True
    )
    words = (line.split(" => ")[-1].split(" (")[0].strip() for line in done.stdout.splitlines())
    return {"/" + str(real(tree, w).relative_to(tree)) for w in words if w.startswith("/")}


def test_every_program_of_a_healthy_root_is_found_whole(tree: Path) -> None:
    with TargetRoot(tree) as root:
        closures = Closures(root)
        init = installed.probe_init(root, closures)
        tools = installed.probe_tools(root, closures, "debian")
    assert init.path == SYSTEMD and init.faults == ()
    assert all(tool.faults == () for tool in tools), [t.faults for t in tools if t.faults]
    assert len(tools) > 10


@pytest.mark.parametrize(
    "name", [SYSTEMD, "/usr/bin/apt-get", "/usr/bin/dpkg-deb", "/usr/lib/apt/methods/http"]
)
def test_the_closure_is_the_loaders_own(tree: Path, name: str) -> None:
    found = program(tree, name)
    assert set(found.objects) - {found.path} == loader_list(tree, name)


def test_it_is_fast(tree: Path) -> None:
    start = time.process_time()
    with TargetRoot(tree) as root:
        closures = Closures(root)
        installed.probe_init(root, closures)
        installed.probe_tools(root, closures, "debian")
    assert time.process_time() - start < 3.0, "0.05 s is usual"


def test_libc_removed(tree: Path) -> None:
    (tree / LIB / "libc.so.6").unlink()
    found = program(tree)
    assert ("missing-library", "libc.so.6") in kinds(found)
    assert {f.path for f in found.faults} == {"libc.so.6"}
    assert subprocess.run(["chroot", tree, "/bin/true"], check=False, capture_output=True).returncode == 127


def test_the_private_library_of_systemd_removed(tree: Path) -> None:
    """It is found by DT_RUNPATH alone."""
    shared = next((tree / LIB / "systemd").glob("libsystemd-shared-*.so"))
    shared.unlink()
    assert kinds(program(tree)) == {("missing-library", shared.name)}


def test_a_library_cut_off(tree: Path) -> None:
    library = real(tree, f"{LIB}/libgcrypt.so.20")
    data = library.read_bytes()
    path = "/" + str(library.relative_to(tree))
    for size in (len(data) - 1, len(data) // 2, 100, 30):
        library.write_bytes(data[:size])
        assert kinds(program(tree, "/usr/bin/gpgv")) == {("truncated", path)}, size


@pytest.mark.parametrize("content", [b"", bytes(200_000), b"<html>not a library</html>"])
def test_a_library_that_is_none(tree: Path, content: bytes) -> None:
    real(tree, f"{LIB}/libcap.so.2").write_bytes(content)
    path = "/" + str(real(tree, f"{LIB}/libcap.so.2").relative_to(tree))
    assert ("not-elf", path) in kinds(program(tree))


def test_a_library_of_another_machine(tree: Path) -> None:
    library = real(tree, f"{LIB}/libacl.so.1")
    data = bytearray(library.read_bytes())
    data[18:20] = (183).to_bytes(2, "little")  # EM_AARCH64, elf.h
    library.write_bytes(data)
    path = "/" + str(library.relative_to(tree))
    assert kinds(program(tree, "/usr/bin/tar")) == {("wrong-architecture", path)}


def test_a_namesake_of_another_class_is_passed_over(tree: Path) -> None:
    """ld.so skips it and takes the right one from the next folder."""
    data = bytearray(real(tree, f"{LIB}/libacl.so.1").read_bytes())
    data[18:20] = (183).to_bytes(2, "little")
    (tree / "opt/first").mkdir()
    (tree / "opt/first/libacl.so.1").write_bytes(data)
    (tree / "etc/ld.so.conf.d/000-first.conf").write_text("/opt/first\n")
    assert program(tree, "/usr/bin/tar").faults == ()


def test_a_missing_link_names_its_file(tree: Path) -> None:
    (tree / LIB / "libacl.so.1").unlink()
    assert [(f.kind, f.path, f.expected) for f in program(tree, "/usr/bin/tar").faults] == [
        ("missing-library", "libacl.so.1", "")
    ]


def test_a_dangling_link_says_where_the_file_lay(tree: Path) -> None:
    library = real(tree, f"{LIB}/libacl.so.1")
    library.unlink()
    assert [(f.kind, f.path, f.expected) for f in program(tree, "/usr/bin/tar").faults] == [
        ("missing-library", "libacl.so.1", "/" + str(library.relative_to(tree)))
    ]


def test_an_absolute_link_is_followed_inside(tree: Path) -> None:
    library = real(tree, f"{LIB}/libacl.so.1")
    (tree / "opt/libs").mkdir()
    library.rename(tree / "opt/libs/acl")
    (tree / LIB / "libacl.so.1").unlink()
    (tree / LIB / "libacl.so.1").symlink_to("/opt/libs/acl")
    found = program(tree, "/usr/bin/tar")
    assert found.faults == () and "/opt/libs/acl" in found.objects


def test_links_that_go_round(tree: Path) -> None:
    (tree / LIB / "libacl.so.1").unlink()
    (tree / LIB / "libacl.so.1").symlink_to("libacl.so.1.0")
    (tree / LIB / "libacl.so.1.0").symlink_to("libacl.so.1")
    assert {f.kind for f in program(tree, "/usr/bin/tar").faults} == {"link-loop"}
    (tree / "usr/sbin/init").unlink()
    (tree / "usr/sbin/init").symlink_to("init")
    assert {f.kind for f in program(tree).faults} == {"link-loop"}


def test_the_loader_removed(tree: Path) -> None:
    loader = real(tree, LOADER)
    loader.unlink()
    fault = ElfFault(
        kind="missing-interpreter",
        path=LOADER,
        needed_by=SYSTEMD,
        expected="/" + str(loader.relative_to(tree)),
    )
    assert fault in program(tree).faults


def test_init_removed(tree: Path) -> None:
    (tree / SYSTEMD[1:]).unlink()
    assert kinds(program(tree)) == {("missing", SYSTEMD)}
    (tree / "usr/sbin/init").unlink()
    with TargetRoot(tree) as root:
        found = installed.probe_init(root, Closures(root))
    assert kinds(found) == {("missing", "/usr/sbin/init")} and found.path == ""


def test_init_not_executable(tree: Path) -> None:
    (tree / SYSTEMD[1:]).chmod(0o644)
    assert kinds(program(tree)) == {("not-executable", SYSTEMD)}


def test_init_is_a_script(tree: Path) -> None:
    (tree / "usr/sbin/init").unlink()
    (tree / "usr/sbin/init").write_text("#! /bin/bash -e\nexec /lib/systemd/systemd\n")
    (tree / "usr/sbin/init").chmod(0o755)
    found = program(tree)
    assert found.faults == () and "/usr/bin/bash" in found.objects and found.path == "/usr/sbin/init"
    (tree / "usr/bin/bash").unlink()
    assert [(f.kind, f.path, f.needed_by) for f in program(tree).faults] == [
        ("missing-interpreter", "/bin/bash", "/usr/sbin/init")
    ]


def test_scripts_that_name_each_other_end(tree: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        (tree / "usr/bin" / one).write_text(f"#!/usr/bin/{other}\n")
        (tree / "usr/bin" / one).chmod(0o755)
    assert set(program(tree, "/usr/bin/a").objects) == {"/usr/bin/a", "/usr/bin/b"}


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_something_else_where_a_library_was(tree: Path, kind: str) -> None:
    library = real(tree, f"{LIB}/libacl.so.1")
    library.unlink()
    if kind == "fifo":
        os.mkfifo(library)
    elif kind == "folder":
        library.mkdir()
    else:
        os.mknod(library, 0o20666, os.makedev(1, 5))  # /dev/zero
    assert [f.kind for f in program(tree, "/usr/bin/tar").faults] == ["not-elf"]


def test_a_faster_build_of_a_library_must_be_sound_too(tree: Path) -> None:
    variant = tree / LIB / "glibc-hwcaps/x86-64-v3"
    variant.mkdir(parents=True)
    shutil.copy(real(tree, f"{LIB}/libacl.so.1"), variant / "libacl.so.1")
    found = program(tree, "/usr/bin/tar")
    assert found.faults == () and f"/{LIB}/glibc-hwcaps/x86-64-v3/libacl.so.1" in found.objects
    (variant / "libacl.so.1").write_bytes(b"\x7fELF cut")
    assert len(program(tree, "/usr/bin/tar").faults) == 1


def test_an_unmerged_usr(tree: Path) -> None:
    """Debian before 12: /lib, /bin and /sbin are folders of their own."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / name).unlink()
        shutil.copytree(tree / "usr" / name, tree / name, symlinks=True)
    shutil.rmtree(tree / "usr/lib/systemd")
    for path in (tree / LIB).glob("libc.so*"):
        path.unlink()
    found = program(tree)
    assert found.path == "/lib/systemd/systemd" and found.faults == ()
    assert "/lib/x86_64-linux-gnu/libc.so.6" in found.objects


def test_library_folders_are_read_inside_and_end(tree: Path) -> None:
    (tree / "etc/ld.so.conf.d/loop.conf").write_text(
        "include /etc/ld.so.conf\ninclude *.conf # again\n/opt/x\n"
    )
    os.mkfifo(tree / "etc/ld.so.conf.d/fifo.conf")
    (tree / "etc/ld.so.conf.d/out.conf").symlink_to("../../../../../../etc/ld.so.conf")
    with TargetRoot(tree) as root:
        folders = configured_folders(root)
    assert "/opt/x" in folders and len(folders) < 20
