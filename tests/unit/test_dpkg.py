# SPDX-License-Identifier: GPL-3.0-or-later
"""The dpkg database, whole and damaged."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_agent.probe.families.debian import archives
from rescue_agent.probe.families.debian.dpkg import (
    find_listed,
    gunzip,
    parse_diversions,
    parse_status,
    probe_database,
)
from rescue_agent.system.root import TargetRoot


def stanza(name: str, status: str = "install ok installed", *more: str) -> str:
    lines = [f"Package: {name}", f"Status: {status}", "Architecture: amd64", "Version: 1:2-3", *more]
    return "\n".join(lines) + "\n\n"


SOUND = (
    stanza("one", "install ok installed", "Essential: yes", "Installed-Size: 12")
    + stanza(
        "two",
        "hold ok half-configured",
        "Conffiles:",
        " /etc/two d41d8cd98f00b204e9800998ecf8427e",
        " /etc/a b d41d8cd98f00b204e9800998ecf8427e",
        " /etc/old d41d8cd98f00b204e9800998ecf8427e obsolete",
        " /etc/new newconffile",
        "Description: text",
        " /etc/not d41d8cd98f00b204e9800998ecf8427e",
    )
    + stanza("gone", "deinstall ok config-files")
    + stanza("half", "install reinstreq half-installed")
)


def test_a_sound_status() -> None:
    status = parse_status(SOUND.encode())
    assert status.damage == ""
    one, two, gone, half = (s.package for s in status.stanzas)
    assert one.essential and one.version == "1:2-3" and one.installed_bytes == 12 << 10
    assert two.held and two.state == "half-configured"
    assert gone.state == "config-files"
    assert half.reinstall_required and half.state == "half-installed"
    md5 = "d41d8cd98f00b204e9800998ecf8427e"
    assert status.stanzas[1].conffiles == (("/etc/two", md5), ("/etc/a b", md5))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (bytes(4096), "nothing but zeros"),
        (SOUND.encode()[:-2], "cut off"),
        (SOUND.encode().replace(b"Version: 1:2-3\nEss", b"Ess"), "no version of one"),
        (SOUND.encode().replace(b"Package: two\n", b""), "no package name in the stanza at line 8"),
        (SOUND.encode().replace(b"hold ok half-configured", b"hold ok"), "no status of two"),
        (SOUND.encode().replace(b"ok half", b"\0\0\0half"), "zeros from byte"),
        (SOUND.encode().replace(b"Description: text", b"\x7f\x80\x81"), "no field"),
    ],
)
def test_damage_is_put_into_words(data: bytes, words: str) -> None:
    status = parse_status(data)
    assert words in status.damage
    if len(data) > 100 and data.strip(b"\0"):
        assert "half" in {s.package.name for s in status.stanzas} or words == "cut off"


@given(st.binary(max_size=500), st.integers(0, len(SOUND)), st.integers(0, 80))
def test_any_bytes_are_taken(junk: bytes, at: int, cut: int) -> None:
    data = SOUND.encode()
    for text in (junk, data[:at] + junk + data[at + cut :]):
        for found in parse_status(text).stanzas:
            assert found.package.name.isascii() and found.package.version.isprintable()


@given(st.integers(1, len(SOUND) - 1))
def test_a_cut_is_seen_unless_it_falls_between_lines(at: int) -> None:
    data = SOUND.encode()[:at]
    if not data.endswith(b"\n"):
        assert parse_status(data).damage


def test_diversions() -> None:
    lines = ["/bin/sh", "/bin/sh.distrib", "dash", "/x", "/y", ":", "/cut"]
    found = parse_diversions(lines)
    assert found["/bin/sh"].diverted_to == "/bin/sh.distrib" and found["/bin/sh"].package == "dash"
    assert found["/x"].package == ":" and "/cut" not in found


def test_gunzip_is_bounded() -> None:
    packed = gzip.compress(bytes(1 << 20))
    assert gunzip(packed, 2 << 20) == bytes(1 << 20)
    for bad, limit in ((packed, 1 << 10), (packed[:-20], 2 << 20), (b"no", 10), (b"", 10)):
        with pytest.raises(ValueError, match="gzip"):
            gunzip(bad, limit)


@pytest.fixture
def root(tmp_path: Path) -> TargetRoot:
    info = tmp_path / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(SOUND)
    (info / "one.list").write_text("/.\n/lib\n/lib/libone.so.1\n/usr/bin/one\n")
    (info / "two:amd64.list").write_text("/.\n/etc/two\n")
    (info / "half.list").write_text("/.\n")
    return TargetRoot(tmp_path)


def test_lists_and_status_belong_together(root: TargetRoot) -> None:
    found = probe_database(root)
    assert found.fact.state == "ok" and found.fact.listed == 3
    assert [p.name for p in found.fact.packages] == ["one", "two", "half"]
    assert found.to_verify == ("one", "two:amd64")
    assert any("half is half-installed" in sign for sign in found.fact.interrupted)


def test_a_status_that_forgets_packages_is_damaged(root: TargetRoot) -> None:
    for number in range(5):
        Path(root.path, f"var/lib/dpkg/info/other{number}.list").write_text("/.\n")
    found = probe_database(root)
    assert found.fact.state == "damaged" and "5 of 8 packages" in found.fact.detail
    assert len(found.to_verify) == 8


def test_whose_file(root: TargetRoot) -> None:
    found = find_listed(root, ["libone.so.1", "/usr/lib/libone.so.1", "/bin/one", "/usr/bin/none", "one"])
    assert found == {
        "libone.so.1": ("one", "/lib/libone.so.1"),
        "/usr/lib/libone.so.1": ("one", "/lib/libone.so.1"),
        "/bin/one": ("one", "/usr/bin/one"),
    }


# --- where packages come from ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("libc6_2.36-9+deb12u10_amd64.deb", ("libc6", "2.36-9+deb12u10", "amd64")),
        ("vim_2%3a9.0.1378-2_amd64.deb", ("vim", "2:9.0.1378-2", "amd64")),
        ("tzdata_2024a_all.deb", ("tzdata", "2024a", "all")),
        ("libc6.deb", None),
        ("../x_1_all.deb", None),
        ("x_%1b[2J_all.deb", None),
        ("libc6_2_amd64.deb.part", None),
    ],
)
def test_archive_names(name: str, parts: tuple[str, str, str] | None) -> None:
    assert archives.parse_archive_name(name) == parts


def test_a_package_file_that_is_cut_off(tmp_path: Path) -> None:
    def member(name: str, data: bytes) -> bytes:
        return (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
            + data
            + b"\n" * (len(data) % 2)
        )

    whole = (
        b"!<arch>\n"
        + member("debian-binary", b"2.0\n")
        + member("control.tar", b"c" * 31)
        + member("data.tar", b"d" * 77)
    )
    file = tmp_path / "x.deb"
    for data, good in (
        (whole, True),
        (whole[:-1], True),
        (whole[:-2], False),
        (whole[:90], False),
        (b"", False),
    ):
        file.write_bytes(data)
        descriptor = os.open(file, os.O_RDONLY)
        try:
            assert archives.is_whole_deb(descriptor) is good, len(data)
        finally:
            os.close(descriptor)


def test_sources_lose_their_credentials() -> None:
    text = (
        "deb [arch=amd64] https://me:s3:cr@t@host/x  stable main # note\n#deb http://old y z\nrpm http://x\n"
    )
    assert list(archives.parse_sources_list(text)) == ["deb [arch=amd64] https://host/x stable main"]


def test_deb822_sources() -> None:
    text = (
        "Types: deb deb-src\nURIs: http://u:p@host/debian\nSuites: a\n b\nComponents: main\n contrib\n"
        "\nEnabled: no\nTypes: deb\nURIs: http://off\nSuites: x\n\n# only a comment\n"
    )
    assert list(archives.parse_deb822_sources(text)) == [
        f"{kind} http://host/debian {suite} main contrib" for kind in ("deb", "deb-src") for suite in "ab"
    ]


@given(st.text())
def test_any_sources_text_is_taken(text: str) -> None:
    list(archives.parse_sources_list(text))
    list(archives.parse_deb822_sources(text))
