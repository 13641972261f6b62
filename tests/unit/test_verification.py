# SPDX-License-Identifier: GPL-3.0-or-later
"""Packaged files compared with lists and checksums, in small trees; dpkg's path filters."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_agent.probe.families.debian import verification
from rescue_agent.probe.families.debian.dpkg import Diversion, probe_diversions
from rescue_agent.probe.families.debian.exclusion import Exclusions, parse_dpkg_cfg, probe_exclusions
from rescue_agent.probe.families.debian.verification import Level, verify
from rescue_agent.system.root import TargetRoot


class Patient:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.conffiles: dict[str, str] = {}
        (path / "var/lib/dpkg/info").mkdir(parents=True)

    def package(self, name: str, files: dict[str, bytes], *more: str) -> None:
        """Install a package; ``more`` is listed without being laid down."""
        info = self.path / "var/lib/dpkg/info"
        folders = sorted({str(p) for f in (*files, *more) for p in Path(f).parents} - {"/"})
        (info / f"{name}.list").write_text("\n".join(["/.", *folders, *files, *more]) + "\n")
        sums = [f"{hashlib.md5(data).hexdigest()}  {path[1:]}" for path, data in files.items()]
        (info / f"{name}.md5sums").write_text("".join(line + "\n" for line in sums))
        for path, data in files.items():
            place = self.path / path[1:]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)

    def check(self, *packages: str, level: Level = "full", processors: int = 2) -> list[tuple[str, str, str]]:
        with TargetRoot(self.path) as root:
            found = verify(
                root,
                packages,
                level=level,
                conffiles=self.conffiles,
                diversions=probe_diversions(root),
                exclusions=probe_exclusions(root),
                processors=processors,
            )
        return [(d.package, d.path, d.kind) for d in found.fact.damaged]


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path)


@pytest.mark.parametrize("processors", [1, 2, 3])
def test_large_and_small_files(patient: Patient, processors: int) -> None:
    sizes = (0, 1, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, 256 << 10, 3 << 20)
    files = {f"/usr/f{size}": os.urandom(size) for size in sizes}
    patient.package("a", files)
    assert patient.check("a", processors=processors) == []
    for size in sizes[1:]:
        with open(patient.path / f"usr/f{size}", "r+b") as file:
            file.seek(size // 2)
            byte = file.read(1)
            file.seek(size // 2)
            file.write(bytes([byte[0] ^ 255]))
    assert patient.check("a", processors=processors) == sorted(
        ("a", f"/usr/f{size}", "changed") for size in sizes[1:]
    )


def test_more_large_files_than_the_queue_holds(patient: Patient) -> None:
    patient.package("a", {f"/usr/f{n}": os.urandom(130 << 10) for n in range(150)})
    before = threading.active_count()
    assert patient.check("a", processors=2) == []
    assert threading.active_count() == before


def test_a_digest_counts_only_for_what_the_package_still_lists(patient: Patient) -> None:
    """Another package took the file over: dpkg drops it from the list, not from the md5sums."""
    patient.package("old", {"/usr/x": b"old", "/usr/y": b"y"})
    patient.package("new", {"/usr/x": b"new"})
    (patient.path / "var/lib/dpkg/info/old.list").write_text("/.\n/usr\n/usr/y\n")
    assert patient.check("new", "old") == []


def test_a_diverted_path(patient: Patient) -> None:
    patient.package("a", {"/usr/x": b"a"})
    (patient.path / "usr/x").rename(patient.path / "usr/x.diverted")
    patient.package("b", {"/usr/x": b"b"})
    (patient.path / "var/lib/dpkg/diversions").write_text("/usr/x\n/usr/x.diverted\nb\n")
    with TargetRoot(patient.path) as root:
        assert probe_diversions(root) == {"/usr/x": Diversion("/usr/x.diverted", "b")}
    assert patient.check("a", "b") == []
    (patient.path / "usr/x.diverted").write_bytes(b"?")
    assert patient.check("a", "b") == [("a", "/usr/x", "changed")]


def test_a_merged_usr_is_one_folder_under_two_names(patient: Patient) -> None:
    patient.package("a", {"/usr/lib/x": b"x"})
    (patient.path / "lib").symlink_to("usr/lib")
    info = patient.path / "var/lib/dpkg/info"
    (info / "a.list").write_text("/.\n/lib\n/lib/x\n")
    (info / "a.md5sums").write_text(f"{hashlib.md5(b'x').hexdigest()}  lib/x\n")
    assert patient.check("a") == []


def test_conffiles_are_compared_by_the_status_file(patient: Patient) -> None:
    patient.package("a", {"/etc/a": b"mine"})
    patient.conffiles["/etc/a"] = hashlib.md5(b"theirs").hexdigest()
    assert patient.check("a") == [("a", "/etc/a", "changed")]


def test_strange_lines_and_names(patient: Patient) -> None:
    name = "/usr/\udcff\u202e x"
    patient.package("a", {"/usr/ok": b""})
    info = patient.path / "var/lib/dpkg/info"
    lines = ["/.", "relative", "", "/usr/\0nul", "/" + "d/" * 3000, "/../../../../etc/hostname", name]
    (info / "a.list").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    (info / "a.md5sums").write_bytes(b"short\n" + b"z" * 32 + b"  \xff\n")
    assert all(path.isprintable() for _, path, _ in patient.check("a"))
    assert "/usr/\\udcff\\u202e x" in {path for _, path, _ in patient.check("a")}


def test_a_list_that_is_a_fifo(patient: Patient) -> None:
    os.mkfifo(patient.path / "var/lib/dpkg/info/a.list")
    assert patient.check("a") == []


def test_a_failing_medium_is_not_worn_out(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    """No disk here fails on demand: the read itself is made to."""
    patient.package("a", {f"/usr/f{n}": b"x" for n in range(200)})
    reads = 0

    def failing(descriptor: int, buffers: object) -> int:
        nonlocal reads
        reads += 1
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(verification.os, "readv", failing)
    with TargetRoot(patient.path) as root:
        found = verify(
            root, ("a",), level="full", conffiles={}, diversions={}, exclusions=Exclusions(), processors=1
        )
    assert reads == verification.MAX_READ_ERRORS
    assert found.fact.level == "existence"
    assert {d.kind for d in found.fact.damaged} == {"unreadable"}


def test_nothing_is_asked(patient: Patient) -> None:
    assert patient.check("a", level="none") == []


# --- what was left out ----------------------------------------------------------------------------


def test_rules_are_read_in_order(patient: Patient) -> None:
    folder = patient.path / "etc/dpkg/dpkg.cfg.d"
    folder.mkdir(parents=True)
    (folder / "docs").write_text("# none\nforce-unsafe-io\npath-exclude=/usr/share/doc/*\n")
    (folder / "keep").write_text('path-include="/usr/share/doc/*/copyright"\n')
    (folder / "ignored.dpkg-old").write_text("path-exclude=/usr/bin/*\n")
    patient.package(
        "a", {"/usr/bin/a": b"a"}, "/usr/share/doc/a/README", "/usr/share/doc/a/copyright", "/usr/bin/b"
    )
    (patient.path / "usr/share/doc").mkdir(parents=True)
    assert patient.check("a") == [
        ("a", "/usr/bin/b", "missing"),
        ("a", "/usr/share/doc/a/copyright", "missing"),
    ]


def test_below_an_excluded_folder() -> None:
    rules = Exclusions(parse_dpkg_cfg("path-exclude /opt/big\npath-exclude=/usr/share/locale/*\n"))
    assert rules.by_rule("/opt/big/deep/file") and rules.by_rule("/usr/share/locale/de/x.mo")
    assert not rules.by_rule("/opt/bigger") and not rules.by_rule("/usr/share/man/x")


def test_documentation_gone_wholesale(patient: Patient) -> None:
    pages = {f"/usr/share/man/man1/p{n}.gz": b"p" for n in range(30)}
    patient.package("a", {"/usr/bin/a": b"a", **pages})
    for path in list(pages)[:10]:
        (patient.path / path[1:]).unlink()
    assert len(patient.check("a")) == 10, "a third of it: that is damage"
    for path in list(pages)[10:]:
        (patient.path / path[1:]).unlink()
    assert patient.check("a") == []


@given(st.text(), st.text())
def test_any_filter_is_taken(pattern: str, path: str) -> None:
    Exclusions(parse_dpkg_cfg(f"path-exclude={pattern}\n{pattern}")).by_rule("/" + path)
