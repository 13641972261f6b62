# SPDX-License-Identifier: GPL-3.0-or-later
"""The packaged files compared with the rpm database, by the rescue system's own ``rpm -V`` (rpm(8)).

It changes its root to the patient, which is mounted without devices and programs, and runs nothing of
it. Dependencies are left out: they take longest and say nothing of files. The packages are dealt out
to as many rpms as there are processors.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, NamedTuple

import msgspec

from rescue_agent.errors import RescueError, UnsafePath
from rescue_agent.model.document import printable
from rescue_agent.model.facts import DamagedFile, InstalledPackage, Verification
from rescue_agent.model.queries import is_below
from rescue_agent.probe.families import Level
from rescue_agent.probe.families.rpm.database import SUPERSEDED, Database
from rescue_agent.system import mounts
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import ANY, Runner

Kind = Literal["missing", "changed", "empty", "wrong-type", "unreadable", "attributes"]

MAX_PROCESSES = 4
MAX_DAMAGED = 50_000
VERIFY_TIMEOUT_S = 7200.0
_FEW = 16

_LINE = re.compile(r"(missing|[.SM5DLUGTP?]{8,9}) +(?:([a-z]) +)?(/.*?)(?: \((.*)\))?\Z")
_ELSEWHERE = ("/run", "/var/run", "/var/lock", "/dev", "/proc", "/sys", "/tmp", "/var/tmp")  # noqa: S108
"""What is made anew at every start: packages own paths there that no disk that is off has."""
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/boot")
"""Where other modes are damage; elsewhere they are mostly their owner's work."""
_FILES = "[%{FILENAMES}\\t%{=NVRA}\\t%{FILEMODES}\\n]"


class Difference(NamedTuple):
    """A line of ``rpm -V``."""

    flags: str
    """``missing`` or nine columns."""
    attribute: str
    """``c`` configuration, ``d`` documentation, ``g`` ghost, …; mostly empty."""
    path: str


def parse_verify(text: str) -> tuple[Difference, ...]:
    """Return the differences that ``rpm -V`` tells, those of time alone left out."""
    found = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match and match[1].strip(".T"):
            found.append(Difference(match[1], match[2] or "", match[3]))
    return tuple(found)


def verify(
    runner: Runner,
    root: TargetRoot,
    database: Database,
    *,
    level: Level,
    report: Callable[[float], None] = lambda _: None,
    processors: int = 0,
) -> Verification:
    """Compare the files of every package with the disk.

    ``level`` ``existence`` looks only whether they are there. ``processors`` 0: as many as there are.
    """
    start = time.monotonic()
    packages = [p for p in database.packages if p.state != SUPERSEDED]
    if level == "none" or not packages:
        return Verification(level="none")
    with _shown(runner, root, database):
        parts = shares(packages, min(processors or os.cpu_count() or 1, MAX_PROCESSES))
        with ThreadPoolExecutor(len(parts)) as pool:
            told = pool.map(lambda part: _verify(runner, root, database, part, level), parts)
            differences = [d for part in told for d in part]
        report(0.9)
    files, damaged = _named(runner, root, database, packages, differences)
    report(1.0)
    return Verification(
        level=level,
        files=files,
        packages=len(packages),
        duration_s=round(time.monotonic() - start, 3),
        damaged=damaged,
    )


@contextmanager
def _shown(runner: Runner, root: TargetRoot, database: Database) -> Iterator[None]:
    """Show the copy where the patient has its database, since rpm looks for it inside its new root."""
    target = root.mount_point(database.folder)
    for argv in mounts.bind_argv(str(database.copy), target, recursive=False):
        runner.run(argv)
    try:
        yield
    finally:
        mounts.release(runner, target)


def shares(packages: Sequence[InstalledPackage], count: int) -> list[list[str]]:
    """Deal the packages out so that each share has about as many bytes."""
    count = 1 if len(packages) < _FEW else count
    dealt: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for package in sorted(packages, key=lambda p: -p.installed_bytes):
        least = sizes.index(min(sizes))
        dealt[least].append(package.labels[-1])
        sizes[least] += package.installed_bytes + (1 << 16)
    return [share for share in dealt if share]


def _verify(
    runner: Runner, root: TargetRoot, database: Database, labels: Sequence[str], level: Level
) -> tuple[Difference, ...]:
    less = ("--nofiledigest",) if level == "existence" else ()
    argv = (
        *("rpm", "--root", root.path, "--dbpath", database.folder, "-V", "--nodeps", "--noscripts", *less),
        *labels,
    )
    # It ends with 1 when there are differences as well as when it could not look.
    done = runner.run(argv, ok=ANY, timeout_s=VERIFY_TIMEOUT_S)
    refuse_silence(done.stdout, done.stderr)
    found = parse_verify(done.stdout)
    return tuple(d for d in found if d.flags == "missing") if level == "existence" else found


def refuse_silence(stdout: str, stderr: str) -> None:
    """Raise RescueError when rpm did not look at everything: what it then does not say is not healthy."""
    lines = stdout.splitlines()
    unseen = [line for line in lines if line.startswith("package ") and line.endswith(" is not installed")]
    errors = [line for line in stderr.splitlines() if line.startswith("error:")]
    if unseen or errors:
        raise RescueError(
            f"rpm could not compare the packaged files: {printable((errors + unseen)[0])[:300]}"
        )


def _named(
    runner: Runner,
    root: TargetRoot,
    database: Database,
    packages: Sequence[InstalledPackage],
    differences: Sequence[Difference],
) -> tuple[int, tuple[DamagedFile, ...]]:
    """Return how many files there are, and the damaged ones with their packages.

    ``rpm -V`` names no packages: the paths are looked up in the lists of all, once.
    """
    told = {d.path: d for d in differences if d.attribute != "g" and not is_below(d.path, _ELSEWHERE)}
    verified = {p.labels[-1] for p in packages}
    count = 0
    found: list[DamagedFile] = []
    for path, label, mode in every_file(runner, database):
        count += label in verified
        if path in told and label in verified:
            damage = _damage(root, told[path], label, mode)
            if damage is not None and len(found) < MAX_DAMAGED:
                found.append(damage)
    return count, tuple(sorted(dict.fromkeys(found), key=lambda d: (d.package, d.path)))


def every_file(runner: Runner, database: Database) -> Iterator[tuple[str, str, int]]:
    """Yield path, package label and mode of every packaged file."""
    argv = ("rpm", "--dbpath", str(database.copy), "-qa", "--qf", _FILES)
    with runner.stream(argv, timeout_s=VERIFY_TIMEOUT_S) as stream:
        for raw in stream:
            path, _, rest = raw.decode("utf-8", "backslashreplace").rstrip("\n").partition("\t")
            label, _, mode = rest.partition("\t")
            if mode.isdecimal():
                yield path, label, int(mode)


def _damage(root: TargetRoot, difference: Difference, label: str, mode: int) -> DamagedFile | None:
    kind = _kind(root, difference, mode)
    config = difference.attribute == "c"
    if kind == "attributes" and not is_below(difference.path, _PROGRAMS):
        config = True
    found = DamagedFile(path=printable(difference.path), package=printable(label), kind=kind, conffile=config)
    if not config or not set(difference.flags) & set("MUG"):
        return found
    state = root.lstat(difference.path)
    if stat.S_ISLNK(state.st_mode):
        return found
    return msgspec.structs.replace(
        found, mode=stat.S_IMODE(state.st_mode), uid=state.st_uid, gid=state.st_gid
    )


def _kind(root: TargetRoot, difference: Difference, mode: int) -> Kind:
    if difference.flags == "missing":
        return "missing"
    try:
        state = root.lstat(difference.path)
    except (OSError, UnsafePath):
        return "unreadable"
    if stat.S_IFMT(state.st_mode) != stat.S_IFMT(mode & 0xFFFF):
        return "wrong-type"
    if "?" in difference.flags:
        return "unreadable"
    if set(difference.flags) & set("S5L"):
        return "changed" if state.st_size else "empty"
    return "attributes"


def find_listed(runner: Runner, database: Database, wanted: Sequence[str]) -> Mapping[str, tuple[str, str]]:
    """Return for each path or file name the package that lists it: (label, path as listed).

    A path is also found under its alias with or without ``/usr``. A name without ``/`` matches in any
    folder of libraries.
    """
    paths = {alias: item for item in wanted if "/" in item for alias in _aliases(item)}
    names = {item: item for item in wanted if "/" not in item}
    found: dict[str, tuple[str, str]] = {}
    for path, label, _ in every_file(runner, database):
        folder, _, name = path.rpartition("/")
        item = paths.get(path) or (names.get(name) if "/lib" in folder else None)
        if item:
            found.setdefault(item, (label, path))
    return found


def _aliases(path: str) -> tuple[str, str]:
    return path, path.removeprefix("/usr") if path.startswith("/usr/") else "/usr" + path
