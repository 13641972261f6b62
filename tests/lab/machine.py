# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine under QEMU's software emulation: what its serial console says, and how it ended.

The kernel is started directly, without firmware and boot loader. ``-cpu Nehalem`` boots in less than
half the time of ``max``: newer instructions are dear to emulate. One machine at a time: two share the
same cores and are no faster together.
"""

from __future__ import annotations

import re
import selectors
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from lab import disks, roots
from lab.disks import Disk, Part

MARKER = "LAB-MULTI-USER-REACHED"
INIT_127 = "Attempted to kill init! exitcode=0x00007f00"
ESCAPES = re.compile(rb"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[()][A-Z0-9])")
COMMAND_LINE = "console=ttyS0 panic=-1 mitigations=off systemd.show_status=1 rw"

# Units that cost most of a boot under emulation and that no fault of the tests depends on.
_MASKED = (
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "systemd-random-seed.service",
    "systemd-update-utmp.service",
    "systemd-journal-flush.service",
    "e2scrub_reap.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
)

_UNIT = f"""[Unit]
Description=Tells the serial console that the machine is up, and powers it off
After=multi-user.target systemd-user-sessions.service

[Service]
Type=oneshot
StandardOutput=tty
TTYPath=/dev/console
ExecStart=/bin/sh -c 'echo "{MARKER} $$(findmnt -no SOURCE /)"'
ExecStart=/bin/systemctl poweroff --no-block

[Install]
WantedBy=graphical.target
"""


@dataclass(frozen=True)
class Bootable:
    """A disk with the kernel and the initramfs of its own system, for a direct boot."""

    disk: Disk
    kernel: Path
    initramfs: Path


@dataclass(frozen=True)
class Boot:
    """What a boot said on the serial console, escape sequences removed."""

    console: str
    raw: bytes
    """The same as it came, for who must read it as a person's terminal saved it."""
    seconds: float
    ended: bool
    """The machine stopped by itself before the time was up."""


def build_bootable(work: Path, folder: Path) -> Bootable:
    """Make the disk of a Debian that tells its serial console when it is up."""
    with roots.fresh_tree(work, roots.BOOTABLE) as tree:
        disks.write_fstab(tree, [(f"UUID={disks.ROOT_UUID}", "/", "ext4", "errors=remount-ro")])
        units = tree / "etc/systemd/system"
        (units / "lab-marker.service").write_text(_UNIT)
        wants = units / "graphical.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / "lab-marker.service").symlink_to("../lab-marker.service")
        for name in _MASKED:
            (units / name).symlink_to("/dev/null")
        kernel, initramfs = folder / "vmlinuz", folder / "initrd.img"
        (found,) = (tree / "boot").glob("vmlinuz-*")
        kernel.write_bytes(found.read_bytes())
        (found,) = (tree / "boot").glob("initrd.img-*")
        initramfs.write_bytes(found.read_bytes())
        part = Part(tree=tree, uuid=disks.ROOT_UUID, label="root")
        disk = disks.build_disk(folder / "bootable.img", [part], size_mib=1024)
    return Bootable(disk, kernel, initramfs)


def boot(
    machine: Bootable,
    image: Path,
    *,
    image_format: str = "raw",
    timeout_s: float = 300.0,
    root: str = f"root=UUID={disks.ROOT_UUID}",
    initramfs: bool = True,
    until: str = "",
) -> Boot:
    """Boot ``image`` until it ends by itself, says ``until``, or the time is up; always ends the machine."""
    command = [
        "qemu-system-x86_64",
        *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem", "-smp", "2", "-m", "1024"),
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-kernel", str(machine.kernel)),
        *(("-initrd", str(machine.initramfs)) if initramfs else ()),
        *("-append", f"{root} {COMMAND_LINE}"),
        *("-drive", f"file={image},format={image_format},if=virtio,cache=unsafe"),
    ]
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = b""
    try:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while time.monotonic() - started < timeout_s:
                if not selector.select(1.0):
                    continue
                piece = process.stdout.read1(1 << 16)  # type: ignore[attr-defined]
                if not piece:
                    break
                said += piece
                if until and until.encode() in said:
                    break
            ended = process.poll() is not None or (not until and process.wait(10) is not None)
    except subprocess.TimeoutExpired:
        ended = False
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    text = ESCAPES.sub(b"", said).decode("utf-8", "replace").replace("\r", "")
    return Boot(text, said, time.monotonic() - started, ended)
