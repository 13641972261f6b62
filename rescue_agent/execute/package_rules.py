# SPDX-License-Identifier: GPL-3.0-or-later
"""What dpkg would do otherwise than plain unpacking: diversions, excluded paths, configuration files.

``parse_*`` and the tests of paths are pure. Formats: deb-conffiles(5), dpkg(1) ``--path-exclude``,
and dpkg's ``diversions`` file (three lines for each: from, to, package or ``:``).
"""

from __future__ import annotations

import fnmatch
import io
import tarfile
from typing import IO, Literal, NamedTuple

from rescue_agent.errors import RescueError
from rescue_agent.system.root import TargetRoot
from rescue_agent.system.runner import Runner

_CONTROL_LIMIT = 4 << 20
_DIVERSIONS = "/var/lib/dpkg/diversions"
_CONFIG = "/etc/dpkg/dpkg.cfg"


class Diversion(NamedTuple):
    """Files of every package but ``package`` that would lie at ``path`` lie at ``to``."""

    path: str
    to: str
    package: str


class Rules(NamedTuple):
    """How one package's files are to be laid over one patient."""

    package: str = ""
    conffiles: frozenset[str] = frozenset()
    diversions: tuple[Diversion, ...] = ()
    path_rules: tuple[tuple[Literal["exclude", "include"], str], ...] = ()

    def diverted(self, path: str) -> str:
        """Return where the package's file ``path`` lies on this patient."""
        for diversion in self.diversions:
            if diversion.path == path and diversion.package != self.package:
                return diversion.to
        return path

    def excluded(self, path: str) -> bool:
        """Return whether the patient's configuration keeps ``path`` out: the last rule that fits."""
        verdict = False
        for kind, pattern in self.path_rules:
            if fnmatch.fnmatchcase(path, pattern):
                verdict = kind == "exclude"
        return verdict


def parse_conffiles(text: str) -> frozenset[str]:
    """Return the paths that a package declares as configuration files and still ships."""
    lines = (line.strip() for line in text.splitlines())
    return frozenset(line for line in lines if line.startswith("/"))


def parse_diversions(text: str) -> tuple[Diversion, ...]:
    """Return the diversions in dpkg's file; an incomplete last one is dropped."""
    lines = text.splitlines()
    return tuple(Diversion(*lines[n : n + 3]) for n in range(0, len(lines) - 2, 3))


def parse_path_rules(text: str) -> tuple[tuple[Literal["exclude", "include"], str], ...]:
    """Return the ``path-exclude`` and ``path-include`` lines of a dpkg configuration, in order."""
    rules: list[tuple[Literal["exclude", "include"], str]] = []
    for line in text.splitlines():
        name, _, value = line.strip().replace("=", " ", 1).partition(" ")
        pattern = value.strip().strip("\"'")
        if name == "path-exclude" and pattern:
            rules.append(("exclude", pattern))
        elif name == "path-include" and pattern:
            rules.append(("include", pattern))
    return tuple(rules)


def parse_control(text: str) -> str:
    """Return the package name in a control file."""
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.lower() == "package":
            return value.strip()
    return ""


def probe_deb_rules(runner: Runner, archive: str, patient: TargetRoot) -> Rules:
    """Return the rules for laying the package file ``archive`` over ``patient``."""
    control = {"control": "", "conffiles": ""}
    with (
        runner.stream(("dpkg-deb", "--ctrl-tarfile", archive)) as stream,
        open_tar(stream, archive) as members,
    ):
        for member in members:
            name = member.name.removeprefix("./")
            if name in control and member.isreg() and member.size <= _CONTROL_LIMIT:
                file = members.extractfile(member) or io.BytesIO()
                control[name] = file.read().decode("utf-8", "replace")
    names = (f"{_CONFIG}.d/{name}" for name in patient.names(f"{_CONFIG}.d"))
    return Rules(
        package=parse_control(control["control"]),
        conffiles=parse_conffiles(control["conffiles"]),
        diversions=parse_diversions(_text(patient, _DIVERSIONS)),
        path_rules=tuple(
            rule for name in (*names, _CONFIG) for rule in parse_path_rules(_text(patient, name))
        ),
    )


def open_tar(stream: IO[bytes], archive: str) -> tarfile.TarFile:
    """Return the tar in ``stream``, to be read once from its beginning to its end."""
    try:
        return tarfile.open(fileobj=stream, mode="r|", errorlevel=2)
    except tarfile.TarError as error:
        raise RescueError(
            f"{archive} is not a package that can be read: {error}",
            hint="it may be cut off; download it again",
        ) from error


def _text(patient: TargetRoot, path: str) -> str:
    try:
        return patient.read_text(path)
    except (OSError, RescueError):
        return ""
