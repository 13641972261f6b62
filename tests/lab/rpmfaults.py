# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults for the roots of lab.rpmroots: databases, packaged files, upgrades that were cut off."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
import time
from pathlib import Path

from lab import disks, rpmroots
from rescue_agent.system import mounts
from rescue_agent.ui import demo_rpms as rpms

MAIN = "var/lib/rpm/rpmdb.sqlite"
PAGE = 4096


def damage_packages(root: Path, count: int = 20, seed: int = 7) -> list[str]:
    """Remove one file in each of ``count`` packages and overwrite another, where there is one.

    Never configuration, and never what a package manager inside or PID 1 stands on. Returns the paths.
    """
    chance = random.Random(seed)
    files: dict[str, list[str]] = {}
    form = "[%{=NAME}\\t%{FILEFLAGS}\\t%{FILENAMES}\\n]"
    for line in disks.run("chroot", root, "rpm", "-qa", "--qf", form).splitlines():
        name, flags, path = line.split("\t")
        if flags == "0" and not _STANDS_ON.fullmatch(name) and _harmless(root, path):
            files.setdefault(name, []).append(path)
    broken = []
    for name in chance.sample(sorted(files), count):
        lost, *bad = chance.sample(sorted(files[name]), min(2, len(files[name])))
        (root / lost[1:]).unlink()
        for path in bad:
            with open(root / path[1:], "r+b") as file:
                file.write(b"\0" * min(512, (root / path[1:]).stat().st_size))
        broken += [lost, *bad]
    return broken


_STANDS_ON = re.compile(
    r"bash|coreutils|filesystem|glibc|gnupg2|grep|(lib)?(rpm|dnf).*|yum|(lib)?zypp.*|python3.*|sed|setup"
)


def _harmless(root: Path, path: str) -> bool:
    place = root / path[1:]
    plain = place.is_file() and not place.is_symlink() and place.stat().st_size > 0
    return plain and ".so" not in path and path != "/usr/lib/systemd/systemd"


def change_attributes(root: Path) -> list[str]:
    """Take modes and owners away from programs whose contents stay whole."""
    (root / "usr/bin/less").chmod(0o600)
    os.chown(root / "usr/bin/tar", 5, 5)
    (root / "usr/share/setup").chmod(0o700)  # of the package with the configuration of every system
    return ["/usr/bin/less", "/usr/bin/tar", "/usr/share/setup"]


# --- the database -------------------------------------------------------------------------------------


def zero_first_page(root: Path) -> None:
    """Zero the first page of the database: nothing of it can be read."""
    _zero(root, 0, 1)


def zero_middle(root: Path) -> None:
    """Zero ten pages in the middle: rpm tells of some packages and then stops."""
    _zero(root, (root / MAIN).stat().st_size // PAGE // 2, 10)


def empty_folder(root: Path) -> None:
    """Remove every file of the database: rpm then says "no packages", with exit code 0."""
    folder = root / "var/lib/rpm"
    shutil.rmtree(folder)
    folder.mkdir()


def _zero(root: Path, page: int, count: int) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{root / MAIN}{suffix}").unlink(missing_ok=True)
    with open(root / MAIN, "r+b") as file:
        file.seek(page * PAGE)
        file.write(bytes(count * PAGE))


DATABASE_FAULTS = (zero_first_page, zero_middle, empty_folder)


def as_berkeley_db(root: Path) -> None:
    """Turn the database into the file that rpm wrote until version 4.15: a Berkeley DB hash.

    Only the headers; the indexes beside it are left out (rpm's lib/backend/db3.c).
    """
    headers = root.parent / "headers"
    folder = root / "var/lib/rpm"
    with open(headers, "wb") as out:
        subprocess.run(["rpmdb", "--dbpath", folder, "--exportdb"], stdout=out, check=True)
    blobs = _split_headers(headers.read_bytes())
    headers.unlink()
    lines = ["VERSION=3", "format=bytevalue", "type=hash", f"db_pagesize={PAGE}", "HEADER=END"]
    for number, blob in enumerate([struct.pack("<I", len(blobs) + 1), *blobs]):
        lines += [" " + struct.pack("<I", number).hex(), " " + blob.hex()]
    for path in folder.glob("rpmdb.sqlite*"):
        path.unlink()
    disks.run("db5.3_load", folder / "Packages", stdin="\n".join([*lines, "DATA=END", ""]))
    # An index of names, of which only the form matters: nobody here looks anything up in it.
    keys = [f" {name}\n {name}" for name in (f"{number:064x}" for number in range(2000))]
    head = ["VERSION=3", "format=bytevalue", "type=hash", f"db_pagesize={PAGE}", "HEADER=END"]
    disks.run("db5.3_load", folder / "Name", stdin="\n".join([*head, *keys, "DATA=END", ""]))


def zero_index_pages(root: Path) -> None:
    """Zero two pages of the index beside a Berkeley DB; its own first page stays."""
    with open(root / "var/lib/rpm/Name", "r+b") as file:
        file.seek(3 * PAGE)
        file.write(bytes(2 * PAGE))


def _split_headers(data: bytes) -> list[bytes]:
    """Return the headers of a header list as the database holds them, without their magic."""
    found = []
    while data:
        entries, size = struct.unpack(">II", data[8:16])
        end = 16 + entries * 16 + size
        found.append(data[8:end])
        data = data[end:]
    return found


def zero_berkeley_pages(root: Path) -> None:
    """Zero four pages of a Berkeley DB, well behind its metadata."""
    with open(root / "var/lib/rpm/Packages", "r+b") as file:
        file.seek(file.seek(0, os.SEEK_END) // PAGE // 2 * PAGE)
        file.write(bytes(4 * PAGE))


# --- upgrades -------------------------------------------------------------------------------------------


def make_tool(work: Path, target: Path, version: str, *, script: str = "", signed: bool = True) -> Path:
    """Make a small package ``lab-tool`` of this version in the folder ``target``."""
    tree = work / f"tool-{version}"
    (tree / "usr/share/lab-tool").mkdir(parents=True)
    (tree / "usr/share/lab-tool/version").write_text(f"{version}\n")
    (tree / f"usr/share/lab-tool/only-{version}").write_text("a file that the other version has not\n")
    target.mkdir(parents=True, exist_ok=True)
    package = rpms.Package("lab-tool", version, "1.lab", tree, requires=("filesystem",), scripts=script)
    maker = rpmroots.maker(work)
    made = maker.rpmbuild(package, target)
    if signed:
        maker.sign(rpmroots.signing_home(), made)
    return made


def cut_off_upgrade(root: Path, work: Path, manager: str) -> None:
    """Let an upgrade die between its halves: the new version is there, the old one not yet removed.

    The new package's own script kills the manager that runs it.
    """
    inside = root / "var/tmp/upgrade"
    make_tool(work, inside, "1.0")
    make_tool(work, inside, "2.0", script="%post\nif [ -e /var/tmp/cut ]; then kill -9 $PPID; fi")
    line: tuple[str | Path, ...] = ("chroot", root, manager)
    words = ("-i", "-U") if manager == "rpm" else ("install", "upgrade")
    if manager != "rpm":
        line += ("-y", "--disablerepo=*")
    disks.run(*line, words[0], "/var/tmp/upgrade/lab-tool-1.0-1.lab.x86_64.rpm")
    (root / "var/tmp/cut").touch()
    assert disks.status(*line, words[1], "/var/tmp/upgrade/lab-tool-2.0-1.lab.x86_64.rpm") != 0
    deadline = time.monotonic() + 10
    while mounts.processes_rooted_in(str(root)) and time.monotonic() < deadline:
        time.sleep(0.05)  # the script outlives the manager that it killed
    (root / "var/tmp/cut").unlink()
    shutil.rmtree(inside)


def enforce_labels(root: Path) -> None:
    """Give the root what a system has that enforces SELinux: its configuration and a policy's labels."""
    (root / "etc/selinux/targeted/contexts/files").mkdir(parents=True)
    (root / "etc/selinux/config").write_text("SELINUX=enforcing\nSELINUXTYPE=targeted\n")
    (root / "etc/selinux/targeted/contexts/files/file_contexts").write_text(
        "/.*\tsystem_u:object_r:default_t:s0\n"
        "/usr/.*\tsystem_u:object_r:usr_t:s0\n"
        "/usr/lib/.*\\.so(\\.[^/]*)*\t--\tsystem_u:object_r:lib_t:s0\n"
    )


def hostile(root: Path) -> None:
    """Put FIFOs, links that lead out and shell words where the look at the packages reads."""
    (root / "usr/bin/df").unlink()
    os.mkfifo(root / "usr/bin/df")
    (root / "usr/bin/du").unlink()
    (root / "usr/bin/du").mkdir()
    folder = root / "var/lib/dnf"
    for name in folder.glob("history.sqlite*"):
        name.unlink()
    os.mkfifo(folder / "history.sqlite")
    shutil.rmtree(root / "etc/pki/rpm-gpg")
    (root / "etc/pki/rpm-gpg").symlink_to("../../../../../../../etc")
    (root / "etc/yum.repos.d/x.repo").write_text(
        "[a\x1b[31m;touch /tmp/lab-owned;]\nbaseurl=http://$(touch /tmp/lab-owned)/\n[[\nno = section\n"
    )
    (root / "var/lib/yum/yumdb/x").mkdir(parents=True)
    (root / "var/lib/yum/yumdb/x" / ("0" * 40 + "-$(reboot)-1-1-x86_64")).mkdir()
    (root / "var/cache/dnf").mkdir(exist_ok=True)
    (root / "var/cache/dnf/loop").symlink_to("../dnf")
    (root / "etc/selinux").mkdir(exist_ok=True)
    os.mkfifo(root / "etc/selinux/config")
