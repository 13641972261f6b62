# SPDX-License-Identifier: GPL-3.0-or-later
"""Formats of disk images, and what a hostile one may not pull in."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_agent.errors import Refused, RescueError, UsageError
from rescue_agent.system import images
from rescue_agent.system.imageformats import Format, parse_format, parse_references, refuse_reason
from rescue_agent.system.resources import Resources
from rescue_agent.system.runner import Runner


def qcow2(backing: str = "", data_file: str = "") -> bytes:
    """Return the header of a qcow2 image (version 3)."""
    extensions = b""
    if data_file:
        name = data_file.encode()
        extensions = struct.pack(">II", 0x44415441, len(name)) + name.ljust(-(-len(name) // 8) * 8, b"\0")
    extensions += bytes(8)
    name = backing.encode()
    at = 104 + len(extensions) if backing else 0
    fields = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, at, len(name), 16, 1 << 20, 0, 1, 65536, 65536, 1, 0, 0
    )
    features = struct.pack(">QQQII", 4 if data_file else 0, 0, 0, 4, 104)
    return (fields + features + extensions + name).ljust(65536, b"\0")


def vmdk_descriptor(extent: str, parent: str = "") -> bytes:
    hint = f'parentFileNameHint="{parent}"\n' if parent else ""
    return f'# Disk DescriptorFile\nversion=1\n{hint}\n# Extent\nRW 2048 FLAT "{extent}" 0\n'.encode()


@pytest.mark.parametrize(
    ("head", "tail", "expected"),
    [
        (qcow2(), b"", "qcow2"),
        (b"KDMV" + bytes(512), b"", "vmdk"),
        (vmdk_descriptor("a"), b"", "vmdk"),
        (bytes(64) + b"\x7f\x10\xda\xbe" + bytes(512), b"", "vdi"),
        (b"vhdxfile" + bytes(512), b"", "vhdx"),
        (b"conectix" + bytes(512), b"", "vpc"),
        (bytes(512), b"conectix", "vpc"),
        (bytes(512), b"", "raw"),
    ],
)
def test_formats(head: bytes, tail: bytes, expected: Format) -> None:
    assert parse_format(head, tail) == expected


def test_references() -> None:
    assert parse_references(qcow2("base.img", "data.raw"), "qcow2") == ("base.img", ("data.raw",))
    assert parse_references(qcow2(), "qcow2") == ("", ())
    assert parse_references(vmdk_descriptor("x-flat.vmdk", "p.vmdk"), "vmdk") == ("p.vmdk", ("x-flat.vmdk",))


@given(st.sampled_from(("qcow2", "vmdk")), st.binary(max_size=2048))
def test_a_damaged_header_is_an_error_with_words(kind: Format, noise: bytes) -> None:
    magic = {"qcow2": b"QFI\xfb\x00\x00\x00\x03", "vmdk": b"KDMV"}[kind]
    try:
        parse_references(magic + noise, kind)
    except RescueError as error:
        assert error.message


@pytest.mark.parametrize("name", ["base.qcow2", "below/base.img", "with space.img", "a,b.img", "./x:y/../z"])
def test_plain_names_pass(name: str) -> None:
    assert refuse_reason(name) == ""


@pytest.mark.parametrize(
    "name", ["nbd://evil/x", "json:{}", "ssh://h/f", "file:/etc/shadow", "a\x1bb", "host_device:/dev/sda", ""]
)
def test_addresses_and_control_characters_do_not(name: str) -> None:
    assert refuse_reason(name) != ""


def _attach(path: Path) -> None:
    images.attach(Runner(), Resources(), str(path), writable=False)


@pytest.mark.parametrize(
    "where", ["/etc/shadow", "../secret.img", "link.img", "nbd://127.0.0.1/x", "json:{}"]
)
@pytest.mark.parametrize("how", ["backing", "data file", "extent", "parent"])
def test_an_image_cannot_pull_in_what_lies_elsewhere(tmp_path: Path, where: str, how: str) -> None:
    (tmp_path / "secret.img").write_bytes(bytes(4096))
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "link.img").symlink_to(tmp_path / "secret.img")
    (folder / "near.img").write_bytes(bytes(4096))
    data = {
        "backing": qcow2(where),
        "data file": qcow2(data_file=where),
        "extent": vmdk_descriptor(where),
        "parent": vmdk_descriptor("near.img", where),
    }[how]
    image = folder / "image"
    image.write_bytes(data.ljust(4096, b"\0"))
    with pytest.raises(Refused) as caught:
        _attach(image)
    assert "qemu-img convert" in caught.value.hint


def test_a_chain_is_followed_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "top.qcow2").write_bytes(qcow2("middle.qcow2"))
    (tmp_path / "middle.qcow2").write_bytes(qcow2("/etc/hostname"))
    with pytest.raises(Refused, match=r"middle\.qcow2"):
        _attach(tmp_path / "top.qcow2")


def test_a_chain_in_a_circle_ends(tmp_path: Path) -> None:
    (tmp_path / "a.qcow2").write_bytes(qcow2("a.qcow2"))
    with pytest.raises(Refused, match="chain"):
        _attach(tmp_path / "a.qcow2")


def test_what_is_no_image_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "tiny").write_bytes(b"x" * 100)
    (tmp_path / "cut.qcow2").write_bytes(b"QFI\xfb\0\0\0\3")
    for name, words in (
        (".", "is a folder"),
        ("empty", "is empty"),
        ("tiny", "less than one sector"),
        ("nothing", "does not exist"),
    ):
        with pytest.raises(UsageError, match=words):
            _attach(tmp_path / name)
    with pytest.raises(RescueError, match="cut off"):
        _attach(tmp_path / "cut.qcow2")
    with pytest.raises(UsageError, match="neither a file nor a block device"):
        _attach(Path("/dev/null"))


def test_the_format_is_read_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(qcow2())
    (tmp_path / "b").write_bytes(bytes(1024))
    assert images.image_format(Runner(), str(tmp_path / "a")) == "qcow2"
    assert images.image_format(Runner(), str(tmp_path / "b")) == "raw"
