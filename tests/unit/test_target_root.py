# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths of a hostile patient never lead out of it: by openat2(2) and by the walk that stands in for it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rescue_agent.errors import UnsafePath
from rescue_agent.system.root import TargetRoot


@pytest.fixture(params=["openat2", "walk"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TargetRoot]:
    tree = tmp_path / "patient"
    (tree / "etc").mkdir(parents=True)
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "lib").symlink_to("usr/lib")
    (tree / "etc/passwd").write_text("the patient's\n")
    (tree / "etc/up").symlink_to("../../../../../../etc/passwd")
    (tree / "etc/absolute").symlink_to("/etc/passwd")
    (tree / "etc/out").symlink_to(tmp_path / "secret")
    (tree / "dev").symlink_to("/etc")
    (tree / "loop-a").symlink_to("loop-b")
    (tree / "loop-b").symlink_to("loop-a")
    (tmp_path / "secret").write_text("the rescue system's\n")
    with TargetRoot(tree) as target:
        if request.param == "walk":
            target._has_openat2 = False
        yield target


@pytest.mark.parametrize("name", ["/etc/up", "/etc/absolute", "/dev/passwd", "etc/../etc/./up", "//etc//up"])
def test_links_are_resolved_inside(root: TargetRoot, name: str) -> None:
    assert root.read_bytes(name) == b"the patient's\n"
    assert root.resolve(name) == "/etc/passwd"


def test_a_link_to_a_path_of_the_rescue_system_dangles(root: TargetRoot) -> None:
    assert not root.exists("/etc/out")
    assert root.lexists("/etc/out")
    with pytest.raises(FileNotFoundError):
        root.read_bytes("/etc/out")


def test_link_loops_end(root: TargetRoot) -> None:
    with pytest.raises(OSError, match="Too many levels"):
        root.resolve("/loop-a")


def test_a_fifo_is_refused_and_does_not_block(root: TargetRoot) -> None:
    os.mkfifo(root.path + "/etc/os-release")
    with pytest.raises(UnsafePath, match="not a regular file"):
        root.read_bytes("/etc/os-release")


def test_a_folder_is_not_read_as_a_file(root: TargetRoot) -> None:
    with pytest.raises(UnsafePath):
        root.read_bytes("/etc")


def test_the_size_cap_holds(root: TargetRoot) -> None:
    with open(root.path + "/huge", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnsafePath, match="larger than"):
        root.read_bytes("/huge")


def test_nothing_is_mounted_over_a_link(root: TargetRoot) -> None:
    with pytest.raises(UnsafePath, match="link"):
        root.mount_point("/dev")
    with pytest.raises(UnsafePath, match="link"):
        root.mount_point("/lib")
    assert root.mount_point("/usr/lib") == root.path + "/usr/lib"
    assert root.mount_point("/") == root.path


def test_replacing_a_link_leaves_what_it_points_to(root: TargetRoot) -> None:
    root.replace_file("/etc/absolute", io.BytesIO(b"new"), mode=0o640)
    assert root.read_bytes("/etc/absolute") == b"new"
    assert root.lstat("/etc/absolute").st_mode & 0o7777 == 0o640
    assert root.read_bytes("/etc/passwd") == b"the patient's\n"


def test_replacing_through_a_linked_folder_stays_inside(root: TargetRoot) -> None:
    root.replace_file("/lib/x.so", io.BytesIO(b"elf"), mode=0o644)
    assert root.names("/usr/lib") == ("x.so",)
    root.replace_link("/lib/x.so.1", "x.so")
    assert root.readlink("/usr/lib/x.so.1") == "x.so"
    root.remove("/lib/x.so.1")
    assert root.names("/usr/lib") == ("x.so",)


def test_a_failed_write_leaves_the_old_file_and_no_litter(root: TargetRoot) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(28, "No space left on device")

    before = root.names("/etc")
    with pytest.raises(OSError, match="No space"):
        root.replace_file("/etc/passwd", Broken(), mode=0o644)
    assert root.names("/etc") == before
    assert root.read_bytes("/etc/passwd") == b"the patient's\n"


def test_make_folders_does_not_leave_the_root(root: TargetRoot, tmp_path: Path) -> None:
    os.symlink("/var/new", root.path + "/escape")
    root.make_folders("/var/new/deep")
    root.make_folders("/escape/deeper")
    assert (tmp_path / "patient/var/new/deeper").is_dir()
    assert not Path("/var/new").exists()
