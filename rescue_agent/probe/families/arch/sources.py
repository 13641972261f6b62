# SPDX-License-Identifier: GPL-3.0-or-later
"""Where packages can come from: pacman.conf(5) with what it includes, and package files at hand."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rescue_agent.errors import CommandFailed, ToolMissing, UnsafePath
from rescue_agent.model.document import printable
from rescue_agent.model.facts import Archive, Offer
from rescue_agent.model.families.arch import (
    ARCHIVE_SUFFIX,
    config_command,
    outside_options,
    prepare_commands,
)
from rescue_agent.probe.families.debian.exclusion import Exclusions, Rule
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import ANY, Runner

CONFIG = "/etc/pacman.conf"
CONFIG_LIMIT = 1 << 20
MAX_INCLUDES = 64
MAX_SOURCES = 400
MAX_ARCHIVES = 20_000
MAX_RULES = 256
MAX_SERVERS = 5
"""So many servers of a repository are asked: mirror lists name hundreds."""
CACHE = "/var/cache/pacman/pkg"
UNSIGNED = "has no signature beside it, which the system demands of package files (LocalFileSigLevel)"
ASK_TIMEOUT_S = 600.0

_NAME = re.compile(r"(.+)-([^-]+-[^-]+)-([^-]+)\.pkg\.tar(?:\.(?:zst|xz|gz|bz2|lz4|lzo|lrz|Z))?\Z")
_MAGICS = (b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"\x1f\x8b", b"BZh", b"\x04\x22\x4d\x18")
_SIG_WORD = re.compile(r"(?:Package|Database)?(?:Never|Optional|Required|TrustedOnly|TrustAll)\Z")


class Config(NamedTuple):
    """What of a pacman.conf matters."""

    servers: tuple[tuple[str, str, str], ...]
    """Repository, server, and the SigLevel words that hold for it."""
    local_signed: bool
    """Package files given by path must be signed (LocalFileSigLevel)."""
    caches: tuple[str, ...]
    exclusions: Exclusions


def probe_config(root: TargetRoot) -> Config:
    """Return the patient's configuration, with its Include files read inside the patient."""
    return parse_config(_lines(root, CONFIG, [0]))


def _lines(root: TargetRoot, path: str, count: list[int]) -> Iterator[str]:
    count[0] += 1
    if count[0] > MAX_INCLUDES:
        return
    try:
        text = root.read_text(path, CONFIG_LIMIT)
    except (OSError, UnsafePath, ValueError):
        return
    for raw in text.splitlines():
        line = raw.strip()
        match = re.match(r"Include\s*=\s*(/\S+)\Z", line)
        if match is None:
            yield line
            continue
        folder, _, pattern = match[1].rpartition("/")
        for name in root.names(folder):
            if fnmatch.fnmatchcase(name, pattern):
                yield from _lines(root, f"{folder}/{name}", count)


def parse_config(lines: Iterator[str] | Sequence[str]) -> Config:
    """Return what the lines of a pacman.conf say; credentials in addresses are removed.

    Without a word about them signatures are demanded: never less than what may have been asked for.
    """
    section = ""
    general: list[str] = ["Required", "DatabaseOptional"]
    local: list[str] = []
    levels: dict[str, list[str]] = {}
    servers: dict[str, list[str]] = {}
    caches: list[str] = []
    rules: list[Rule] = []
    for line in lines:
        if line.startswith("#") or not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
            continue
        key, _, value = (part.strip() for part in line.partition("="))
        words = value.split()
        if key == "SigLevel":
            known = [word for word in words if _SIG_WORD.match(word)]
            if section == "options":
                general = known
            else:
                levels.setdefault(section, []).extend(known)
        elif section == "options" and key == "LocalFileSigLevel":
            local = words
        elif section == "options" and key == "CacheDir":
            caches += [word.rstrip("/") for word in words if word.startswith("/")]
        elif section == "options" and key == "NoExtract":
            rules += [_rule(word) for word in words if len(word) < 1024]
        elif key == "Server" and len(words) == 1 and re.fullmatch(r"[A-Za-z0-9@._+-]+", section):
            servers.setdefault(section, []).append(re.sub(r"(://)[^/\s@]*@", r"\1", words[0]))
    found = [
        (repository, printable(server), " ".join((*general, *levels.get(repository, ()))))
        for repository, addresses in servers.items()
        for server in addresses[:MAX_SERVERS]
    ]
    signed = _required(local or general)
    return Config(
        tuple(found[:MAX_SOURCES]), signed, tuple(caches) or (CACHE,), Exclusions(tuple(rules[:MAX_RULES]))
    )


def _required(words: Sequence[str]) -> bool:
    """Return whether packages must be signed after these words: the last that speaks of it counts."""
    levels = [w.removeprefix("Package") for w in words if not w.startswith("Database")]
    levels = [word for word in levels if word in ("Never", "Optional", "Required")]
    return not levels or levels[-1] == "Required"


def _rule(word: str) -> Rule:
    include = word.startswith("!")
    return Rule(include, re.compile(fnmatch.translate("/" + word.lstrip("!").lstrip("/")), re.DOTALL))


# --- package files ------------------------------------------------------------------------------------


def probe_cache(root: TargetRoot, config: Config) -> tuple[Archive, ...]:
    """Return the package files in the patient's own cache."""
    found = []
    for folder in config.caches:
        names = frozenset(root.names(folder))
        for name in sorted(names)[:MAX_ARCHIVES]:
            match = _NAME.match(name)
            if match is None or printable(name) != name:
                continue
            try:
                with root.open_file(f"{folder}/{name}") as file:
                    whole = file.read(8).startswith(_MAGICS) or name.endswith(ARCHIVE_SUFFIX)
            except (OSError, UnsafePath):
                continue
            if whole:
                refused = config.local_signed and f"{name}.sig" not in names
                found.append(_archive(f"{folder}/{name}", match, "cache", refused=refused))
    return tuple(found)


def probe_folder(folder: str, config: Config) -> tuple[Archive, ...]:
    """Return the package files in a folder of the rescue system."""
    found = []
    try:
        paths = sorted(path for path in Path(folder).rglob(f"*{ARCHIVE_SUFFIX}*") if path.is_file())
    except OSError:
        return ()
    for path in paths[:MAX_ARCHIVES]:
        match = _NAME.match(path.name)
        if match is not None:
            refused = config.local_signed and not Path(f"{path}.sig").is_file()
            found.append(_archive(str(path), match, "folder", refused=refused))
    return tuple(found)


def _archive(
    path: str, match: re.Match[str], origin: Literal["cache", "folder"], *, refused: bool
) -> Archive:
    return Archive(
        path=path,
        package=printable(match[1]),
        version=printable(match[2]),
        architecture=printable(match[3]),
        origin=origin,
        refused=UNSIGNED if refused else "",
    )


# --- what the repositories offer ------------------------------------------------------------------------


def ask_sources(
    runner: Runner, root: TargetRoot, work_dir: str, sources: Sequence[str], architecture: str
) -> tuple[tuple[Offer, ...] | None, str]:
    """Ask the patient's repositories what they have; return their offers, or None and why."""
    try:
        for argv in (*prepare_commands(work_dir, root.path), config_command(work_dir, sources, architecture)):
            runner.run(argv)
        options = outside_options(work_dir)
        synced = runner.run(("pacman", *options, "-Sy"), ok=ANY, timeout_s=ASK_TIMEOUT_S)
        listed = runner.run(("pacman", *options, "-Sl"), ok=ANY, timeout_s=ASK_TIMEOUT_S)
    except (ToolMissing, CommandFailed, OSError) as error:
        return None, f"the configured repositories could not be asked: {printable(str(error))[:300]}"
    offers = parse_offers(listed.stdout, architecture)
    if not offers:
        said = [line for line in synced.stderr.splitlines() if "error" in line] or ["pacman gave no reason"]
        return None, f"the configured repositories do not answer: {printable(said[0].strip())[:300]}"
    return offers, ""


def parse_offers(text: str, architecture: str) -> tuple[Offer, ...]:
    """Return the offers in the output of ``pacman -Sl``: ``repository name version [installed]``."""
    words = (line.split() for line in text.splitlines())
    return tuple(
        Offer(package=printable(w[1]), version=printable(w[2]), architecture=architecture)
        for w in words
        if len(w) >= 3
    )
