# SPDX-License-Identifier: GPL-3.0-or-later
"""Sample documents for tests of what is shown: one of every operation, with hostile text in it."""

from __future__ import annotations

from rescue_agent.model.finding import Diagnosis, Evidence, Finding
from rescue_agent.model.operation import (
    Activate,
    Bind,
    Mount,
    Operation,
    RemoveFile,
    Run,
    SetMetadata,
    Symlink,
    Unpack,
    WriteFile,
)
from rescue_agent.model.plan import Deferred, DiskIdentity, Plan, Policy, Refusal, Step

CREATED = "2026-01-02T03:04:05Z"
WORK = "/var/lib/rescue-agent/runs/20260102T030405Z-00aa"
HOSTILE = "a\x1b[31mb\n$(reboot) `id` 'x' \"y\" \\ %s -rf \u202e\tz"

OPERATIONS: tuple[Operation, ...] = (
    Run(argv=("e2fsck", "-f", "-n", "--", "/dev/vda2"), ok=(0, 4)),
    Run(
        argv=("e2fsck", "-f", "-y", "--", "/dev/vda2"),
        ok=(0, 1, 2),
        progress="e2fsck",
        until=("e2fsck", "-f", "-n", "--", "/dev/vda2"),
        max_runs=4,
    ),
    Run(argv=("xfs_repair", "-e", "/dev/vda3"), ok=(0, 4)),
    Run(
        argv=("apt-get", "-q", "-y", "install", "--reinstall", "libc6=2.36-9+deb12u14"),
        inside=True,
        environment=(("DEBIAN_FRONTEND", "noninteractive"), ("APT_LISTCHANGES_FRONTEND", "none")),
        progress="apt",
    ),
    Mount(source="/dev/vda2", path="/", type="ext4", options="rw"),
    Mount(source="proc", path="/proc", type="proc"),
    Bind(source="/dev", path="/dev", folder=True, recursive=True),
    Bind(source="/run/udev", path="/run/udev", folder=True, read_only=True),
    Bind(source="", path="/proc/cmdline", content="root=UUID=6d2f ro\n"),
    Activate(
        argv=("vgchange", "-a", "y", "vg0"), release=("vgchange", "-a", "n", "vg0"), device="/dev/vg0/root"
    ),
    WriteFile(path="/etc/fstab", content="# made anew\nUUID=6d2f / ext4 errors=remount-ro 0 1\n"),
    WriteFile(path="/etc/odd", content=HOSTILE, mode=0o600),
    WriteFile(path="/etc/empty"),
    WriteFile(path="/var/lib/dpkg/status", copy_of="/var/lib/dpkg/status-old"),
    WriteFile(path="/usr/sbin/policy-rc.d", content="#!/bin/sh\nexit 101\n", mode=0o755, held=True),
    RemoveFile(path="/var/lib/dpkg/updates/0001"),
    Symlink(path="/lib64", target="usr/lib64"),
    SetMetadata(path="/usr/lib/systemd/systemd", mode=0o755, uid=0, gid=0),
    Unpack(archive=f"{WORK}/archives/libc6_2.36-9+deb12u14_amd64.deb"),
    Unpack(
        archive=f"{WORK}/archives/libacl1_2.3.1-3_amd64.deb",
        members=("/usr/lib/x86_64-linux-gnu/libacl.so.1",),
    ),
    Unpack(archive=f"{WORK}/archives/glibc-2.34-1.x86_64.rpm", format="rpm"),
)
"""At least one of every kind."""

DAMAGED = Finding(
    id="ext4-damaged:/dev/vda2",
    code="ext4-damaged",
    severity="fatal",
    confidence="certain",
    subject="/dev/vda2",
    device="/dev/vda2",
    title="The ext4 filesystem is damaged",
    evidence=(Evidence(source="e2fsck -f -n /dev/vda2", excerpt="Inode 12 has an invalid extent"),),
    repair="automatic",
)
NO_LIBRARY = Finding(
    id="init-library-missing:libc.so.6",
    code="init-library-missing",
    severity="fatal",
    confidence="certain",
    subject="/sbin/init",
    device="/dev/vda2",
    system="6d2f",
    title="PID 1 cannot start: libc.so.6, which it is linked to, is not there",
    evidence=(Evidence(source="/usr/lib/systemd/systemd", excerpt="NEEDED libc.so.6: not found"),),
    repair="automatic",
    consequence_of=DAMAGED.id,
    packages=("libc6",),
    paths=("/usr/lib/x86_64-linux-gnu/libc.so.6",),
)
FULL = Finding(
    id="space-full:/dev/vda3",
    code="space-full",
    severity="warning",
    confidence="likely",
    subject="/dev/vda3",
    device="/dev/vda3",
    title="Hardly any room is left on /home",
    evidence=(Evidence(source="statfs /home", excerpt="12 KiB free"),),
    repair="advice",
    advice="Remove or move what is not needed; the agent never removes data.",
)


def diagnosis(*findings: Finding) -> Diagnosis:
    """A diagnosis of one Debian on /dev/vda."""
    return Diagnosis(
        agent_version="0.1.0",
        created=CREATED,
        disks=("/dev/vda",),
        systems=("Debian GNU/Linux 12 (bookworm) on /dev/vda2",),
        findings=findings,
    )


def repair_plan() -> Plan:
    """A plan as the agent makes them: check, workspace, package from outside, package from inside."""
    run_check, repair, *_ = OPERATIONS
    operations = {
        "workspace": tuple(o for o in OPERATIONS if isinstance(o, Mount | Bind) or getattr(o, "held", False)),
        "outside": (next(o for o in OPERATIONS if isinstance(o, Unpack)), Run(argv=("true",), inside=True)),
        "inside": (next(o for o in OPERATIONS if isinstance(o, Run) and o.inside),),
    }
    return Plan(
        agent_version="0.1.0",
        created=CREATED,
        policy=Policy(work_dir=WORK),
        disks=(
            DiskIdentity(device="/dev/vda", id="serial:QM00001", size_bytes=20 << 30, head_sha256="a" * 64),
        ),
        system="6d2f",
        system_name="Debian GNU/Linux 12 (bookworm)",
        findings=(DAMAGED, NO_LIBRARY, FULL),
        steps=(
            Step(
                id="fsck-vda2",
                stage="filesystem",
                title="Repair the ext4 filesystem on /dev/vda2",
                why="e2fsck found damage, and nothing on it can be trusted before it is mended",
                findings=(DAMAGED.id,),
                risk="lossy",
                operations=(run_check, repair),
                disks=("/dev/vda",),
                estimate_s=95.0,
            ),
            Step(
                id="workspace",
                stage="packages",
                title="Open the installed system",
                why="package repair works inside it",
                risk="reversible",
                operations=operations["workspace"],
                needs=("fsck-vda2",),
            ),
            Step(
                id="outside",
                stage="packages",
                title="Lay libc6 over the system from outside",
                why="nothing in the system starts without libc.so.6, its own package manager neither",
                findings=(NO_LIBRARY.id,),
                risk="reversible",
                operations=operations["outside"],
                needs=("workspace",),
                estimate_s=2.0,
            ),
            Step(
                id="inside",
                stage="packages",
                title="Reinstall libc6 with the system's own package manager",
                why="its scripts and the database must agree with the files",
                findings=(NO_LIBRARY.id,),
                risk="reversible",
                operations=operations["inside"],
                needs=("workspace", "outside"),
                estimate_s=20.0,
            ),
        ),
        deferred=(Deferred(stage="initramfs", reason="the kernels are read once /dev/vda2 is mended"),),
        refusals=(
            Refusal(
                reason="Data on /home is not removed to make room.",
                advice="Move some of it to another disk.",
                findings=(FULL.id,),
            ),
        ),
    )


def every_operation_plan() -> Plan:
    """A plan with every kind of operation and hostile text in every field of people's text."""
    steps = tuple(
        Step(
            id=f"step {HOSTILE} {number}",
            stage="packages",
            title=f"Do {HOSTILE}",
            why=HOSTILE,
            risk="reversible",
            operations=(operation,),
            needs=(f"step {HOSTILE} {number - 1}",) if number % 3 == 1 else (),
        )
        for number, operation in enumerate(OPERATIONS)
    )
    return Plan(
        agent_version="0.1.0",
        created=CREATED,
        policy=Policy(work_dir="/tmp/a work 'folder'"),
        disks=(
            DiskIdentity(
                device="/dev/loop3",
                id=f"image:/srv/{HOSTILE}.qcow2",
                size_bytes=1 << 30,
                head_sha256="",
                image=f"/srv/{HOSTILE}.qcow2",
                image_format="qcow2",
            ),
        ),
        system_name=f"hostile {HOSTILE}",
        findings=(
            Finding(
                id="x",
                code="x",
                severity="error",
                confidence="possible",
                subject=HOSTILE,
                title=HOSTILE,
                evidence=(Evidence(source=HOSTILE, excerpt=HOSTILE),),
                repair="none",
                advice=HOSTILE,
            ),
        ),
        steps=steps,
        deferred=(Deferred(stage="bootloader", reason=HOSTILE),),
        refusals=(Refusal(reason=HOSTILE, advice=HOSTILE),),
    )


def empty_plan() -> Plan:
    """Nothing is wrong, nothing is to be done."""
    return Plan(agent_version="0.1.0", created=CREATED, policy=Policy(), system_name="healthy")


def refused_plan() -> Plan:
    """Nothing may be written."""
    return Plan(
        agent_version="0.1.0",
        created=CREATED,
        policy=Policy(),
        system_name="hibernated",
        findings=(FULL,),
        refusals=(
            Refusal(
                reason="The system on /dev/vda2 is hibernated.",
                advice="Start it once, shut it down, and come back.",
                blocks_everything=True,
            ),
        ),
    )


def plans() -> tuple[Plan, ...]:
    """All sample plans."""
    return (repair_plan(), every_operation_plan(), empty_plan(), refused_plan())
