# SPDX-License-Identifier: GPL-3.0-or-later
"""Where packages can come from: package files at hand, and the patient's configured sources."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from rescue_agent.errors import CommandFailed, ToolMissing, UnsafePath
from rescue_agent.model.document import printable
from rescue_agent.model.facts import Archive, InstalledPackage
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import Runner

CACHE = "/var/cache/apt/archives"
MAX_ARCHIVES = 5000
MAX_ASKED = 500
"""How many package files of a folder dpkg-deb is asked about: about 10 ms each."""
MAX_SOURCES = 200
_NAME = re.compile(r"([a-z0-9][a-z0-9+.-]+)_([^_/]+)_([a-z0-9-]+)\.deb\Z")
_AR_MAGIC = b"!<arch>\n"


class ArchiveName(NamedTuple):
    """What apt writes into the name of a package file in its cache."""

    package: str
    version: str
    architecture: str


def parse_archive_name(name: str) -> ArchiveName | None:
    """Return the parts of ``name_version_arch.deb``; the epoch's colon is written as ``%3a``."""
    match = _NAME.match(name)
    if match is None:
        return None
    version = unquote(match[2])
    return ArchiveName(match[1], version, match[3]) if version.isprintable() else None


def is_whole_deb(descriptor: int) -> bool:
    """Return whether a file is an ar archive with all its members (deb(5)); one cut off is not."""
    size = os.fstat(descriptor).st_size
    if os.pread(descriptor, 8, 0) != _AR_MAGIC:
        return False
    at, members = 8, 0
    while at < size and members < 16:
        header = os.pread(descriptor, 60, at)
        length = header[48:58].strip()
        if len(header) < 60 or header[58:60] != b"`\n" or not length.isdigit():
            return False
        at += 60 + int(length)
        at += at % 2
        members += 1
    # A member of odd length at the end needs no padding byte.
    return members >= 3 and at in (size, size + 1)


def probe_cache(root: TargetRoot) -> tuple[Archive, ...]:
    """Return the whole package files in the patient's own cache."""
    found = []
    for name in root.names(CACHE)[:MAX_ARCHIVES]:
        parts = parse_archive_name(name)
        if parts is None:
            continue
        try:
            with root.open_file(f"{CACHE}/{name}") as file:
                whole = is_whole_deb(file.fileno())
        except (OSError, UnsafePath):
            continue
        if whole:
            found.append(_archive(f"{CACHE}/{name}", parts, "cache"))
    return tuple(found)


def probe_folder(runner: Runner, folder: str, installed: tuple[InstalledPackage, ...]) -> tuple[Archive, ...]:
    """Return the whole package files in a folder of the rescue system.

    Files there may be named as in a repository's pool, without the epoch, or in any way. Only a name
    that says exactly what is installed is believed; for the others dpkg-deb reads the file.
    """
    known = {(p.name, p.version, p.architecture) for p in installed}
    found = []
    asked = 0
    try:
        names = sorted(path for path in Path(folder).iterdir() if path.suffix == ".deb")[:MAX_ARCHIVES]
    except OSError:
        return ()
    for path in names:
        if not _is_whole_file(path):
            continue
        parts = parse_archive_name(path.name)
        if parts is None or tuple(parts) not in known:
            if asked >= MAX_ASKED:
                continue
            asked += 1
            parts = _ask(runner, path)
        if parts is not None:
            found.append(_archive(str(path), parts, "folder"))
    return tuple(found)


def _is_whole_file(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode) and is_whole_deb(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _ask(runner: Runner, path: Path) -> ArchiveName | None:
    form = "${Package}\\n${Version}\\n${Architecture}\\n"
    try:
        done = runner.run(("dpkg-deb", f"--showformat={form}", "-W", str(path)), timeout_s=60)
    except (CommandFailed, ToolMissing):
        return None
    lines = done.stdout.split("\n")
    return ArchiveName(*lines[:3]) if len(lines) >= 3 and all(lines[:3]) else None


def _archive(path: str, parts: ArchiveName, origin: str) -> Archive:
    return Archive(
        path=path,
        package=printable(parts.package),
        version=printable(parts.version),
        architecture=printable(parts.architecture),
        origin=origin,  # type: ignore[arg-type]
    )


# --- sources ---------------------------------------------------------------------------------------


def parse_sources_list(text: str) -> Iterator[str]:
    """Yield the active lines of a one-line-style sources.list (sources.list(5)), credentials removed."""
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        if line.startswith(("deb ", "deb-src ", "deb\t", "deb-src\t")):
            yield without_credentials(" ".join(line.split()))


def parse_deb822_sources(text: str) -> Iterator[str]:
    """Yield the sources of a deb822-style file, one line for each type, URI and suite."""
    for block in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t"):
                fields[name] = fields.get(name, "") + " " + line.strip()
                continue
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "without", "off", "disable", "0"):
            continue
        components = " ".join(fields.get("components", "").split())
        for kind in fields.get("types", "").split():
            for uri in fields.get("uris", "").split():
                for suite in fields.get("suites", "").split():
                    yield without_credentials(f"{kind} {uri} {suite} {components}".strip())


def without_credentials(line: str) -> str:
    """Return a source without the user name and password of its URI."""
    return re.sub(r"([a-z][a-z0-9+.-]*://)[^/\s@]*(?:@[^/\s@]*)*@", r"\1", line, flags=re.IGNORECASE)


def probe_sources(root: TargetRoot) -> tuple[str, ...]:
    """Return the patient's configured sources in the order in which apt reads them."""
    base = "/etc/apt/sources.list"
    found: list[str] = []
    for path in [base, *(f"{base}.d/{name}" for name in root.names(base + ".d")[:256])]:
        if not path.endswith((".list", ".sources")):
            continue
        try:
            text = root.read_text(path, 1 << 20)
        except (OSError, UnsafePath):
            continue
        parse = parse_deb822_sources if path.endswith(".sources") else parse_sources_list
        found += (printable(line) for line in parse(text))
    return tuple(found[:MAX_SOURCES])
