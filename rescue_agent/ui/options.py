# SPDX-License-Identifier: GPL-3.0-or-later
"""Arguments and options that several commands share, or that are long to tell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Disks = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[DISK]...", help="Block devices or disk images; none: every disk that may be a patient."
    ),
]
Disk = Annotated[str, typer.Argument(metavar="DISK", help="A block device or a disk image.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
FactsFile = Annotated[
    Path | None, typer.Option("--facts", help="Work from a saved scan; needs neither root nor disk.")
]
SystemId = Annotated[
    str, typer.Option("--system", metavar="UUID", help="The system to mend, when there are several.")
]
SurfaceScan = Annotated[
    bool,
    typer.Option("--surface-scan/--no-surface-scan", help="Read every block after a repair (e2fsck -c)."),
]
AcceptLogLoss = Annotated[
    bool,
    typer.Option(
        "--accept-log-loss", help="Allow xfs_repair -L when nothing else is left: loses recent files."
    ),
]
Upgrade = Annotated[bool, typer.Option("--upgrade", help="Also bring all packages up to date.")]
Packages = Annotated[
    Path | None, typer.Option("--packages", metavar="DIR", help="A folder of package files to use.")
]
Network = Annotated[
    bool, typer.Option("--network/--no-network", help="Allow downloads from the patient's sources.")
]
Quick = Annotated[
    bool, typer.Option("--quick", help="Only look whether packaged files exist, compare no checksums.")
]
Logs = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="FILE",
        help="A saved console, dmesg, journal or pstore log, packed or not; - is standard input. "
        "May be given several times. Without a DISK, logs alone are judged: no root needed.",
    ),
]
Dumps = Annotated[
    list[str] | None,
    typer.Option(
        "--vmcore",
        metavar="FILE",
        help="A memory dump of a kernel that panicked (ELF or kdump, as QEMU, virsh and kdump write it).",
    ),
]
Signatures = Annotated[
    str, typer.Option("--signatures", metavar="DIR", help="A folder with log signatures of your own.")
]
Rehearse = Annotated[
    bool, typer.Option("--rehearse", help="Do it all on a copy-on-write layer; the disk itself is only read.")
]

Debuginfo = Annotated[
    str,
    typer.Option(
        "--debuginfo",
        metavar="FILE",
        help="The kernel's vmlinux, or the .deb or .rpm that holds it: adds stack and tasks by crash(8).",
    ),
]
SaveDmesg = Annotated[
    str, typer.Option("--save-dmesg", metavar="FILE", help="Write the dump's kernel log to a new file.")
]
Explain = Annotated[
    str, typer.Option("--explain", metavar="CODE", help="Print the page of one code and exit.")
]
