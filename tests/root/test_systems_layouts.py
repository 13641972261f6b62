# SPDX-License-Identifier: GPL-3.0-or-later
"""Installed systems on real filesystems: split over several, on subvolumes, hibernated, hostile."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from lab import disks, roots
from lab.disks import Part

from rescue_agent.model.document import encode
from rescue_agent.model.facts import BlockDevice, Content, Filesystem, ProbeError, System
from rescue_agent.probe.systems import probe_systems
from rescue_agent.system import mounts
from rescue_agent.system.runner import Runner

pytestmark = pytest.mark.root

Volume = tuple[str, str, Path | None, str]
"""Filesystem type, UUID, contents, label."""


@pytest.fixture
def tree(work: Path) -> Iterator[Path]:
    with roots.fresh_tree(work / "root") as tree:
        yield tree


@pytest.fixture
def small(work: Path) -> Path:
    """A system of a few files: enough to be recognised."""
    tree = work / "small"
    for folder in ("etc", "dev", "proc", "sys", "run", "var/lib/dpkg/info", "usr/sbin", "usr/lib"):
        (tree / folder).mkdir(parents=True)
    (tree / "sbin").symlink_to("usr/sbin")
    (tree / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Small Debian"\n')
    (tree / "etc/fstab").write_text("UUID=aaaa / ext4 defaults 0 1\n")
    (tree / "var/lib/dpkg/status").write_text(
        "Package: dpkg\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n"
    )
    return tree


@contextmanager
def attached(work: Path, volumes: Sequence[Volume]) -> Iterator[tuple[tuple[BlockDevice, ...], Path]]:
    """Each volume on a loop device of its own, all taken for one disk."""
    with ExitStack() as stack:
        devices = []
        for number, (fstype, uuid, contents, label) in enumerate(volumes):
            image = work / f"volume-{number}.img"
            part = Part(fstype, tree=contents, uuid=uuid, label=label)
            disks.build_disk(image, [part], size_mib=400 if fstype.startswith("ext") else 600, table="")
            path = stack.enter_context(disks.loop(image, read_only=True))
            devices.append(
                BlockDevice(
                    path=path,
                    id=f"image:{image}",
                    kind="loop",
                    disk=devices[0].path if devices else path,
                    size_bytes=image.stat().st_size,
                    content=Content(type=fstype, usage="filesystem", uuid=uuid, label=label),
                )
            )
        yield tuple(devices), work / "probe"


def look(
    devices: tuple[BlockDevice, ...], place: Path, *, readable: Callable[[BlockDevice], bool] = lambda _: True
) -> tuple[tuple[System, ...], tuple[ProbeError, ...]]:
    filesystems = tuple(
        Filesystem(
            device=d.path, type=d.content.type, state="clean", uuid=d.content.uuid, readable=readable(d)
        )
        for d in devices
        if d.content is not None and d.content.usage == "filesystem" and d.content.type != "swap"
    )
    found = probe_systems(
        Runner(),
        devices,
        filesystems,
        packages_dir="",
        verify="full",
        mount_dir=place,
        progress=lambda _: None,
    )
    assert mounts.mounts_below(str(place)) == ()
    assert not place.exists() or list(place.iterdir()) == []
    return found.systems, found.errors


def test_usr_and_var_on_filesystems_of_their_own(tree: Path, work: Path) -> None:
    parts = {}
    for name in ("usr", "var"):
        parts[name] = work / name
        shutil.move(tree / name, parts[name])
        (tree / name).mkdir()
    disks.write_fstab(
        tree,
        [
            ("UUID=5e5c0a6e-0000-4000-8000-0000000000aa", "/", "ext4", "defaults"),
            ("LABEL=var", "/var", "ext4", "defaults"),
            ("UUID=5e5c0a6e-0000-4000-8000-0000000000bb", "/usr", "ext4", "nodev"),
        ],
    )
    volumes = (
        ("ext4", "5e5c0a6e-0000-4000-8000-0000000000aa", tree, ""),
        ("ext4", "5e5c0a6e-0000-4000-8000-0000000000bb", parts["usr"], ""),
        ("ext4", "5e5c0a6e-0000-4000-8000-0000000000cc", parts["var"], "var"),
    )
    with attached(work, volumes) as (devices, place):
        root, usr, var = devices
        before = [hashlib.sha256(Path(d.path).read_bytes()).hexdigest() for d in devices]
        systems, errors = look(devices, place)
        assert errors == () and len(systems) == 1
        system = systems[0]
        assert [(m.mount_point, m.device) for m in system.mounts] == [("/var", var.path), ("/usr", usr.path)]
        assert system.mounts[1].options == ("nodev",)
        assert (system.family, system.package_manager, system.architecture) == ("debian", "apt", "amd64")
        assert system.hostname == "patient" and system.machine_id.startswith("5e5c00e")
        assert system.init is not None and system.init.faults == () and len(system.init.objects) > 10
        assert system.database is not None and system.database.verification.damaged == ()
        assert system.database.verification.files > 5000
        assert system.unusual == () and not system.hibernated

        # /usr cannot be read: nothing is said to be missing from it
        systems, errors = look(devices, place, readable=lambda d: d is not usr)
        assert systems[0].init is None and systems[0].tools == ()
        assert systems[0].database is not None and systems[0].database.verification.level == "none"
        assert any("/usr was not looked at" in e.message for e in errors)

        # /var is not attached: no word about the packages
        systems, errors = look((root, usr), place)
        assert systems[0].database is None and systems[0].init is not None
        assert systems[0].init.faults == ()
        assert any(e.message.startswith("/var is on a device that is not here") for e in errors)
        assert before == [hashlib.sha256(Path(d.path).read_bytes()).hexdigest() for d in devices]


@pytest.mark.parametrize("name", ["", "@", "root"])
def test_btrfs_subvolumes(small: Path, work: Path, name: str) -> None:
    with attached(work, [("btrfs", "5e5c0a6e-0000-4000-8000-0000000000dd", None, "")]) as (devices, place):
        image = work / "volume-0.img"
        with disks.loop(image) as writable, disks.mounted_device(writable, "btrfs") as top:
            if name:
                disks.run("btrfs", "subvolume", "create", top / name)
            disks.run("btrfs", "subvolume", "create", top / "@home")
            disks.run("cp", "-a", f"{small}/.", top / name)
        systems, errors = look(devices, place)
    assert errors == ()
    assert [(s.subvolume, s.name) for s in systems] == [(name, "Small Debian")]


def test_xfs(small: Path, work: Path) -> None:
    with attached(work, [("xfs", "5e5c0a6e-0000-4000-8000-0000000000ee", small, "")]) as (devices, place):
        systems, _ = look(devices, place)
    assert [s.id for s in systems] == ["5e5c0a6e-0000-4000-8000-0000000000ee"]


def test_a_data_disk_is_no_system(work: Path) -> None:
    data = work / "data"
    (data / "photos").mkdir(parents=True)
    with attached(work, [("ext4", "", data, "")]) as (devices, place):
        assert look(devices, place) == ((), ())


def test_an_init_alone_is_an_unknown_system(work: Path) -> None:
    tree = work / "bare"
    (tree / "sbin").mkdir(parents=True)
    (tree / "sbin/init").symlink_to("/lib/systemd/systemd")
    with attached(work, [("ext4", "", tree, "")]) as (devices, place):
        systems, _ = look(devices, place)
    (system,) = systems
    assert system.family == "unknown" and system.fstab_state == "missing"
    assert system.init is not None
    assert [(f.kind, f.path) for f in system.init.faults] == [("missing", "/lib/systemd/systemd")]
    assert system.id == system.device


def test_hibernation_of_the_machines_own_swap(small: Path, work: Path) -> None:
    (small / "etc/fstab").write_text("UUID=5abc / ext4 defaults 0 1\nUUID=51ee none swap sw 0 0\n")
    with attached(work, [("ext4", "", small, "")]) as (devices, place):
        root = devices[0]

        def swap(uuid: str, kind: str, disk: str) -> BlockDevice:
            content = Content(type=kind, usage="other", uuid=uuid)
            return BlockDevice(
                path=f"/dev/{uuid}", id=uuid, kind="partition", disk=disk, size_bytes=1, content=content
            )

        def asleep(*others: BlockDevice) -> bool:
            return look((root, *others), place)[0][0].hibernated

        assert asleep(swap("51ee", "swsuspend", "/dev/sdz"))
        assert not asleep(swap("51ee", "swap", root.disk))
        # Its fstab names a swap that is not this one: another machine's, on another disk
        assert not asleep(swap("0ther", "swsuspend", "/dev/sdz"))
        # It names none that is here: what lies on the same disk counts
        assert asleep(swap("0ther", "swsuspend", root.disk))


def test_hibernation_in_a_swap_file(small: Path, work: Path) -> None:
    page = bytearray(4096)
    page[4086:4096] = b"S1SUSPEND\0"
    (small / "swapfile").write_bytes(bytes(page) + bytes(8192))
    (small / "etc/fstab").write_text("/swapfile none swap sw 0 0\n")
    with attached(work, [("ext4", "", small, "")]) as (devices, place):
        assert look(devices, place)[0][0].hibernated


# --- hostile ------------------------------------------------------------------------------------


def _fifo(tree: Path) -> None:
    (tree / "etc/os-release").unlink()
    os.mkfifo(tree / "etc/os-release")
    os.mkfifo(tree / "etc/hostname")
    (tree / "etc/fstab").unlink()
    os.mkfifo(tree / "etc/fstab")


def _endless(tree: Path) -> None:
    (tree / "etc/fstab").write_text("A" * (10 << 20) + " / ext4\n")
    (tree / "etc/os-release").write_text("ID=" + "debian" * (1 << 20))


def _loops(tree: Path) -> None:
    for name in ("etc/os-release", "usr/lib/os-release", "etc/fstab", "etc/resolv.conf"):
        (tree / name).unlink(missing_ok=True)
        (tree / name).symlink_to(Path(name).name)
    (tree / "usr/sbin/init").symlink_to("init")


def _escapes(tree: Path) -> None:
    (tree / "etc/os-release").write_bytes(
        b'ID="debian$(reboot)"\nPRETTY_NAME="\x1b]0;owned\x07\x1b[31mDebian\xff\xe2\x80\xae\0"\n'
    )
    (tree / "etc/fstab").write_bytes(b"LABEL=\x1b[2J\xff /\x1b[31m ext4\0 \x07 0 1\n/dev/x\n\x00\n")
    (tree / "etc/hostname").write_bytes(b"\x1b[2J\x00host\n")
    (tree / "var/lib/dpkg/diversions").write_bytes(b"/a\n/\xff\n")
    (tree / "var/lib/dpkg/info/\x1b[2J.list").write_bytes(
        b"/.\n/\x00\x1b[2J/x\n/../../../etc/passwd\n/" + b"a/" * 5000
    )
    (tree / "etc/dpkg/dpkg.cfg.d").mkdir(parents=True)
    (tree / "etc/dpkg/dpkg.cfg.d/x").write_bytes(b"path-exclude=" + b"*a" * 400 + b"[\xff\n")


@pytest.mark.parametrize("spoil", [_fifo, _endless, _loops, _escapes])
def test_a_hostile_root_is_looked_at_and_done(small: Path, work: Path, spoil: Callable[[Path], None]) -> None:
    spoil(small)
    with attached(work, [("ext4", "", small, "")]) as (devices, place):
        systems, errors = look(devices, place)
    (system,) = systems
    text = encode(system).decode() + "".join(encode(e).decode() for e in errors)
    assert "\x1b" not in text and "\\u001b" not in text and "\\u0000" not in text and "\u202e" not in text


def test_nothing_is_mounted_outside_or_over_the_root(small: Path, work: Path) -> None:
    """Mount points that are links, climb out, or are the root itself."""
    other = work / "other"
    (other / "etc").mkdir(parents=True)
    (other / "etc/hostname").write_text("someone else\n")
    (small / "etc/hostname").write_text("patient\n")
    (small / "srv").symlink_to("../../../../../../../../../../tmp")
    (small / "opt").symlink_to("/etc")
    (small / "tmp").mkdir()
    lines = [
        f"LABEL=other {point} ext4 defaults 0 2"
        for point in ("/", "//", "/../..", "/srv", "/opt", "/./etc/..")
    ]
    (small / "etc/fstab").write_text("\n".join([*lines, "LABEL=other /mnt\\040x ext4 defaults 0 2"]) + "\n")
    (small / "mnt x").mkdir()
    with attached(work, [("ext4", "", small, ""), ("ext4", "", other, "other")]) as (devices, place):
        before = mounts.mounts()
        systems, errors = look(devices, place)
        assert mounts.mounts() == before
    (system,) = systems
    assert system.hostname == "patient"
    assert {m.mount_point for m in system.mounts} == {"/srv", "/opt", "/mnt x"}
    assert sum("nothing is mounted over it" in e.message for e in errors) == 2


def test_special_folders_that_are_links_are_told(small: Path, work: Path) -> None:
    (small / "dev").rmdir()
    (small / "dev").symlink_to("/etc")
    (small / "proc").rmdir()
    (small / "proc").write_text("")
    (small / "etc/resolv.conf").symlink_to("../../../../etc/passwd")
    (small / "etc/passwd").write_text("root:x:0:0\n")
    with attached(work, [("ext4", "", small, "")]) as (devices, place):
        (system,), _ = look(devices, place)
    assert system.unusual == (
        "/dev is a link to /etc",
        "/proc is not a folder",
        "/etc/resolv.conf is a link that leads out of the root, to ../../../../etc/passwd",
    )
    assert system.resolv_conf == "/etc/passwd"


def test_owners_of_what_init_lacks(tree: Path, work: Path) -> None:
    (tree / "usr/lib/x86_64-linux-gnu/libc.so.6").unlink()
    (tree / "usr/lib/x86_64-linux-gnu/libacl.so.1").unlink()
    (tree / "usr/bin/dpkg-deb").chmod(0o644)
    with attached(work, [("ext4", "", tree, "")]) as (devices, place):
        (system,), errors = look(devices, place)
    assert errors == () and system.init is not None and system.database is not None
    faults = {f.path: f for f in system.init.faults}
    assert faults["libc.so.6"].package == "libc6:amd64"
    assert faults["libc.so.6"].expected == "/lib/x86_64-linux-gnu/libc.so.6"
    assert {d.path for d in system.database.verification.damaged} >= {faults["libc.so.6"].expected}
    tools = {f.path: f.package for tool in system.tools for f in tool.faults}
    assert tools["/usr/bin/dpkg-deb"] == "dpkg" and tools["libacl.so.1"] == "libacl1:amd64"


def test_kernels_and_network(small: Path, work: Path) -> None:
    (small / "boot").mkdir()
    for name in (
        "vmlinuz-6.1.0-9-amd64",
        "initrd.img-6.1.0-9-amd64",
        "vmlinuz-6.1.0-10-amd64",
        "vmlinuz-6.1.0-10-amd64.old",
        "initrd.img-6.1.0-10-amd64.bak",
    ):
        (small / "boot" / name).write_text("x")
    (small / "usr/lib/modules/6.1.0-9-amd64/kernel").mkdir(parents=True)
    (small / "etc/network").mkdir()
    (small / "etc/network/interfaces").write_text("auto lo\niface lo inet loopback\n")
    with attached(work, [("ext4", "", small, "")]) as (devices, place):
        (system,), _ = look(devices, place)
    assert [(k.release, bool(k.image), bool(k.initramfs), k.modules) for k in system.kernels] == [
        ("6.1.0-9-amd64", True, True, True),
        ("6.1.0-10-amd64", True, False, False),
    ]
    assert not system.network_configured


def test_a_root_whose_folders_cannot_be_read_is_a_fact(small: Path, work: Path) -> None:
    """The inode of /etc is cleared: what can't be read is reported, never raised."""
    with attached(work, [("ext4", "", small, "")]) as (devices, place):
        image = work / "volume-0.img"
        subprocess.run(["debugfs", "-w", "-R", "clri /etc", image], check=True, capture_output=True)
        systems, errors = look(devices, place)
    assert len(systems) + len(errors) >= 1
