# SPDX-License-Identifier: GPL-3.0-or-later
"""Where packages can come from: package files at hand with their signatures, and the repositories."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from rescue_agent.errors import CommandFailed, ToolMissing, UnsafePath
from rescue_agent.model.document import printable
from rescue_agent.model.facts import Archive, InstalledPackage, Offer
from rescue_agent.model.families.rpm import EXPORT_KEYS, Places, keyring, outside_options, trust
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import ANY, Runner

MAX_ARCHIVES = 5000
MAX_SOURCES = 200
MAX_KEYS = 64
MAX_NAMES = 1000
KEY_LIMIT = 1 << 20
CONFIG_LIMIT = 1 << 20
ASK_TIMEOUT_S = 600.0
UNTRUSTED = "is not signed by a key that the system trusts"
BROKEN = "is damaged"

_MAGIC = b"\xed\xab\xee\xdb"  # rpm's lib/rpmlead.c
_NAME = re.compile(r"(.+)-([^-]+-[^-]+)\.([^.-]+)\.rpm\Z")
_FORM = "%{NAME}\\t%{EPOCHNUM}\\t%{VERSION}-%{RELEASE}\\t%{ARCH}\\n"
_FALSE = ("0", "no", "false", "off")


class Repository(NamedTuple):
    """An enabled repository of the patient."""

    name: str
    address: str
    signed: bool
    """Its packages must carry a known signature (``gpgcheck``, dnf.conf(5))."""


def probe_repositories(root: TargetRoot, places: Places) -> tuple[tuple[Repository, ...], bool]:
    """Return the enabled repositories, and whether any package must be signed by the configuration.

    Without a word about it signatures are demanded: never less than what may have been asked for.
    """
    general = [gpgcheck for path in places.configs for gpgcheck in _general(_text(root, path))]
    default = not general or any(general)
    found: list[Repository] = []
    texts = [_text(root, path) for path in places.configs]
    for folder in places.repositories:
        texts += [_text(root, f"{folder}/{n}") for n in root.names(folder)[:256] if n.endswith(".repo")]
    for text in texts:
        found += parse_repositories(text, signed=default)
    return tuple(found[:MAX_SOURCES]), any(r.signed for r in found) if found else default


def _text(root: TargetRoot, path: str) -> str:
    try:
        return root.read_text(path, CONFIG_LIMIT)
    except (OSError, UnsafePath):
        return ""


def _parsed(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    try:
        parser.read_string(text)
    except configparser.Error:
        return configparser.ConfigParser(interpolation=None)
    return parser


def _general(text: str) -> Iterator[bool]:
    parser = _parsed(text)
    if parser.has_option("main", "gpgcheck"):
        yield parser.get("main", "gpgcheck").strip().lower() not in _FALSE


def parse_repositories(text: str, *, signed: bool) -> Iterator[Repository]:
    """Yield the enabled repositories of a .repo file (dnf.conf(5)), credentials removed."""
    parser = _parsed(text)
    for section in parser.sections():
        values = parser[section]
        addresses = [values.get(key, "").split() for key in ("baseurl", "mirrorlist", "metalink")]
        address = next((words[0] for words in addresses if words), "")
        if section == "main" or not address or values.get("enabled", "1").strip().lower() in _FALSE:
            continue
        yield Repository(
            printable(section),
            printable(re.sub(r"(://)[^/\s@]*@", r"\1", address)),
            values.get("gpgcheck", "1" if signed else "0").strip().lower() not in _FALSE,
        )


# --- keys -------------------------------------------------------------------------------------------


def probe_keys(root: TargetRoot, places: Places) -> tuple[str, ...]:
    """Return the paths of the public keys that the patient's own packages have installed, links followed."""
    found = []
    for name in [f"{folder}/{n}" for folder in places.keys for n in root.names(folder)[:MAX_KEYS]]:
        try:
            path = root.resolve(name)
        except (OSError, UnsafePath):
            continue
        if re.fullmatch(r"[A-Za-z0-9/._+-]+", path) and root.is_file(path):
            found.append(path)
    return tuple(dict.fromkeys(found))


def make_keyring(runner: Runner, root: TargetRoot, keys: Sequence[str], database: Path, work: Path) -> None:
    """Make a keyring of the patient's keys below ``work``; what is no key is passed over.

    They are those of its files and those that were imported into its ``database``, a copy.
    """
    (work / "keys").mkdir()
    imported = work / "imported.asc"
    runner.run(("sh", "-c", EXPORT_KEYS, "sh", str(database), str(work / "rpmdb-of-keys"), str(imported)))
    runner.run(("rpmkeys", *keyring(str(work)), "--import", str(imported)), ok=ANY)
    for number, path in enumerate(keys):
        try:
            data = root.read_bytes(path, KEY_LIMIT)
        except (OSError, UnsafePath):
            continue
        copy = work / f"key-{number}"
        copy.write_bytes(data)
        runner.run(("rpmkeys", *keyring(str(work)), "--import", str(copy)), ok=ANY)


# --- package files ------------------------------------------------------------------------------------


def probe_cache(
    root: TargetRoot, places: Places, installed: Collection[InstalledPackage]
) -> tuple[Archive, ...]:
    """Return the package files in the patient's own caches that are of the installed versions."""
    known = _by_file_name(installed)
    found = []
    for path in _cached(root, places):
        package = known.get(path.rpartition("/")[2])
        try:
            with root.open_file(path) as file:
                whole = file.read(4) == _MAGIC
        except (OSError, UnsafePath):
            continue
        parts = _NAME.match(path.rpartition("/")[2])
        if whole and package is not None:
            found.append(_archive(path, package, "cache"))
        elif whole and parts is not None:  # another version: it can go when there is no room
            other = InstalledPackage(name=parts[1], version=parts[2], architecture=parts[3])
            found.append(_archive(path, other, "cache"))
    return tuple(found)


def _cached(root: TargetRoot, places: Places) -> Iterator[str]:
    """Yield the package files below the caches: ``CACHE/[ARCH/RELEASE/]REPOSITORY/packages/``."""
    todo = [(cache, 0) for cache in places.caches]
    count = 0
    while todo:
        folder, depth = todo.pop()
        for name in root.names(folder):
            path = f"{folder}/{name}"
            if name.endswith(".rpm"):
                count += 1
                if count <= MAX_ARCHIVES:
                    yield path
            elif depth < 4 and root.is_folder(path):
                todo.append((path, depth + 1))


def probe_folder(
    runner: Runner, folder: str, installed: Collection[InstalledPackage], work: Path
) -> tuple[Archive, ...]:
    """Return the package files in a folder of the rescue system.

    A name that says exactly what is installed is believed; for the others rpm reads the file.
    """
    known = _by_file_name(installed)
    found, unknown = [], []
    try:
        paths = sorted(p for p in Path(folder).rglob("*.rpm") if not p.name.endswith(".src.rpm"))
    except OSError:
        return ()
    for path in paths[:MAX_ARCHIVES]:
        if not _has_magic(path):
            continue
        package = known.get(path.name)
        if package is not None:
            found.append(_archive(str(path), package, "folder"))
        elif _NAME.match(path.name) is None:
            unknown.append(path)
    for path in unknown[:MAX_NAMES]:
        asked = _ask(runner, path, work)
        if asked is not None:
            found.append(_archive(str(path), asked, "folder"))
    return tuple(found)


def _by_file_name(packages: Collection[InstalledPackage]) -> Mapping[str, InstalledPackage]:
    return {f"{package.labels[-1]}.rpm": package for package in packages}


def _has_magic(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.pread(descriptor, 4, 0) == _MAGIC
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _ask(runner: Runner, path: Path, work: Path) -> InstalledPackage | None:
    argv = (
        "rpm",
        "--dbpath",
        f"{work}/no-rpmdb",
        "-q",
        "-p",
        "--nosignature",
        "--qf",
        _FORM,
        "--",
        str(path),
    )
    try:
        fields = runner.run(argv).stdout.rstrip("\n").split("\t")
    except (CommandFailed, ToolMissing):
        return None
    if len(fields) != 4:
        return None
    name, epoch, version, architecture = fields
    whole = version if epoch == "0" else f"{epoch}:{version}"
    return InstalledPackage(name=name, version=whole, architecture=architecture)


def _archive(path: str, package: InstalledPackage, origin: Literal["cache", "folder"]) -> Archive:
    return Archive(
        path=path,
        package=printable(package.name),
        version=printable(package.version),
        architecture=printable(package.architecture),
        origin=origin,
    )


def with_trust(
    runner: Runner,
    root: TargetRoot,
    archives: Sequence[Archive],
    needed: Collection[tuple[str, str]],
    work: Path,
    *,
    signed: bool,
) -> tuple[Archive, ...]:
    """Return the archives with those refused whose signature or digest does not hold.

    Only those of packages in ``needed`` (name and version) are looked at: each is read whole.
    """
    places = {
        (root.path + root.resolve(a.path) if a.origin == "cache" else a.path): a
        for a in archives
        if (a.package, a.version) in needed
    }
    verdicts: dict[str, bool] = {}
    argv = ("rpmkeys", *keyring(str(work)), *trust(signed=signed), "--checksig", "--")
    for start in range(0, len(places), 200):
        part = list(places)[start : start + 200]
        done = runner.run((*argv, *part), ok=ANY, timeout_s=ASK_TIMEOUT_S)
        verdicts.update(parse_checksig(done.stdout))
    said = {id(archive): verdicts.get(place) for place, archive in places.items()}
    reason = UNTRUSTED if signed else BROKEN
    return tuple(
        msgspec.structs.replace(a, refused=reason) if id(a) in said and not said[id(a)] else a
        for a in archives
    )


def parse_checksig(text: str) -> dict[str, bool]:
    """Return what ``rpmkeys --checksig`` says of each file; a file that it does not name is not proved."""
    lines = (line.rpartition(": ") for line in text.splitlines())
    return {path: said.endswith("OK") and "NOT OK" not in said for path, _, said in lines if path}


# --- what the repositories offer ------------------------------------------------------------------------


def ask_repositories(
    runner: Runner, root: TargetRoot, work_dir: str, release: str, places: Places, names: Sequence[str]
) -> tuple[tuple[Offer, ...] | None, str]:
    """Ask the patient's repositories for packages by name; return what they offer, or None and why."""
    options = outside_options(root.path, work_dir, release, places)
    form = "%{name} %{epoch}:%{version}-%{release} %{arch}"
    try:
        Path(work_dir, "dnf").mkdir(parents=True, exist_ok=True, mode=0o700)
        done = runner.run(
            ("dnf", *options, "repoquery", "--available", "--qf", form, *names[:MAX_NAMES]),
            ok=ANY,
            timeout_s=ASK_TIMEOUT_S,
        )
    except (ToolMissing, CommandFailed, OSError) as error:
        return None, f"the configured repositories could not be asked: {printable(str(error))}"
    offers = parse_offers(done.stdout)
    if not offers and (done.exit_code != 0 or "rror" in done.stderr):
        said = [line for line in done.stderr.splitlines() if "rror" in line] or ["dnf gave no reason"]
        return None, f"the configured repositories do not answer: {printable(said[0].strip())[:300]}"
    return offers, ""


def parse_offers(text: str) -> tuple[Offer, ...]:
    """Return the offers in the output of ``dnf repoquery``, in its order turned round: newest first."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and ":" in words[1]:
            found.append(
                Offer(
                    package=printable(words[0]),
                    version=printable(words[1].removeprefix("0:")),
                    architecture=printable(words[2]),
                )
            )
    return tuple(dict.fromkeys(reversed(found)))
