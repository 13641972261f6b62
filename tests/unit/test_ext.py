# SPDX-License-Identifier: GPL-3.0-or-later
"""The ext superblock reader, on superblocks made here field by field."""

from __future__ import annotations

import struct
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_agent.probe import ext
from rescue_agent.probe.superblocks import Geometry, parse_btrfs, parse_fat, parse_xfs


def superblock(
    *,
    blocks: int = 100_000,
    log_block: int = 0,
    group: int = 0,
    state: int = 1,
    compat: int = 0x4,
    incompat: int = 0x2 | 0x40,
    ro_compat: int = 0x3,
    uuid: bytes = b"u" * 16,
    label: bytes = b"root",
    errors: int = 0,
) -> bytes:
    """Return a superblock of ext4 (without checksums) with sound geometry."""
    data = bytearray(1024)
    size = 1024 << log_block
    struct.pack_into("<II", data, 0x00, 5000, blocks)
    struct.pack_into("<II", data, 0x14, 1 if log_block == 0 else 0, log_block)
    struct.pack_into("<I", data, 0x20, 8 * size)
    struct.pack_into("<I", data, 0x28, 512)
    struct.pack_into("<HH", data, 0x38, ext.MAGIC, state)
    struct.pack_into("<I", data, 0x4C, 1)
    struct.pack_into("<HH", data, 0x58, 256, group)
    struct.pack_into("<III", data, 0x5C, compat, incompat, ro_compat)
    data[0x68:0x78] = uuid
    data[0x78 : 0x78 + len(label)] = label
    struct.pack_into("<I", data, 0x194, errors)
    return bytes(data)


class Device:
    """A sparse device: bytes at some offsets, zeroes elsewhere, and places that cannot be read."""

    def __init__(self, size: int, pieces: dict[int, bytes], bad: frozenset[int] = frozenset()) -> None:
        self.size = size
        self.pieces = pieces
        self.bad = bad

    def read_at(self, offset: int, size: int) -> bytes:
        if offset in self.bad:
            raise OSError(5, "Input/output error")
        return self.pieces.get(offset, bytes(size))[:size]


def test_crc32c_is_the_one_of_ext4() -> None:
    # The check value of CRC-32C (RFC 3720, appendix B.4: 32 bytes of zeroes), before its inversion.
    assert ext.crc32c(bytes(32)) ^ 0xFFFFFFFF == 0x8A9136AA
    assert ext.crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283


@pytest.mark.parametrize(
    ("features", "kind"),
    [
        ({"compat": 0, "incompat": 0x2, "ro_compat": 0x3}, "ext2"),
        ({"compat": 0x4, "incompat": 0x2, "ro_compat": 0x3}, "ext3"),
        ({"compat": 0x4, "incompat": 0x6, "ro_compat": 0x3}, "ext3"),
        ({"compat": 0x4, "incompat": 0x42, "ro_compat": 0x3}, "ext4"),
        ({"compat": 0, "incompat": 0x2, "ro_compat": 0xB}, "ext4"),
    ],
)
def test_the_type_follows_from_the_features(features: dict[str, int], kind: str) -> None:
    found = ext.parse_superblock(superblock(**features))  # type: ignore[arg-type]
    assert found is not None
    assert found.type == kind


def test_flags_and_texts() -> None:
    found = ext.parse_superblock(superblock(state=2, incompat=0x46, label=b"a\x1b[1m\nb\xff", errors=3))
    assert found is not None
    assert found.needs_recovery
    assert found.has_errors
    assert not found.cleanly_unmounted
    assert found.label == "a\\x1b[1m\\x0ab\\xff"
    assert found.size_bytes == 100_000 * 1024
    assert ext.fault_of(found) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"log_block": 9}, "block size"),
        ({"blocks": 0}, "number of blocks"),
        ({"group": 3}, "copy of group 3"),
        ({"ro_compat": 0x403}, "checksum"),
    ],
)
def test_what_cannot_be_believed(change: dict[str, int], reason: str) -> None:
    found = ext.parse_superblock(superblock(**change))  # type: ignore[arg-type]
    assert found is not None
    assert reason in ext.fault_of(found)


def test_a_right_checksum_is_believed() -> None:
    data = bytearray(superblock(ro_compat=0x403))
    struct.pack_into("<I", data, 0x3FC, ext.crc32c(bytes(data[:0x3FC])))
    found = ext.parse_superblock(bytes(data))
    assert found is not None
    assert ext.fault_of(found) == ""


def test_groups_with_a_copy() -> None:
    assert list(islice(ext.sparse_groups(), 10)) == [1, 3, 5, 7, 9, 25, 27, 49, 81, 125]


@pytest.mark.parametrize("log_block", range(7))
def test_copies_are_found_for_every_block_size(log_block: int) -> None:
    size = 1024 << log_block
    first = 1 if log_block == 0 else 0
    places = [first + group * 8 * size for group in (1, 3, 5)]
    pieces = {
        place * size: superblock(blocks=10 * 8 * size, log_block=log_block, group=group)
        for place, group in zip(places, (1, 3, 5), strict=True)
    }
    found = ext.find_backups(Device(1 << 44, pieces).read_at, 1 << 44)
    assert [(b.block, b.block_size) for b, _ in found] == [(place, size) for place in places]


def test_copies_of_something_else_do_not_count() -> None:
    size = 4096
    at = [group * 8 * size * size for group in (1, 3, 5, 7)]
    pieces = {
        at[0]: superblock(log_block=2, group=1),
        at[1]: superblock(log_block=2, group=3, uuid=b"v" * 16),  # left from an earlier filesystem
        at[2]: superblock(log_block=2, group=1),  # some file's copy of the first
        at[3]: superblock(log_block=2, group=7),
    }
    found = ext.find_backups(Device(1 << 40, pieces).read_at, 1 << 40)
    assert [b.block for b, _ in found] == [32768, 7 * 32768]


def test_unreadable_places_and_the_end_of_the_device_are_passed_over() -> None:
    pieces = {(1 + g * 8192) * 1024: superblock(group=g) for g in (1, 3)}
    device = Device(4 * 8192 * 1024, pieces, bad=frozenset({(1 + 8192) * 1024}))
    assert [b.block for b, _ in ext.find_backups(device.read_at, device.size)] == [1 + 3 * 8192]
    assert ext.find_backups(device.read_at, 8192 * 1024) == ()


@given(st.binary(min_size=1024, max_size=1024))
def test_noise_never_breaks_the_reader(noise: bytes) -> None:
    data = bytearray(noise)
    struct.pack_into("<H", data, 0x38, ext.MAGIC)
    found = ext.parse_superblock(bytes(data))
    assert found is not None
    ext.fault_of(found)
    assert all(t.isprintable() for t in (found.label, found.uuid, found.first_error, found.last_error))


@given(st.binary(max_size=4096))
def test_noise_never_breaks_the_other_readers(noise: bytes) -> None:
    for parse, magic, at in ((parse_xfs, b"XFSB", 0), (parse_btrfs, b"_BHRfS_M", 0x40)):
        data = bytearray(noise.ljust(4096, b"\0"))
        data[at : at + len(magic)] = magic
        assert parse(bytes(data)).size_bytes >= 0
        parse(noise)
    data = bytearray(noise.ljust(512, b"\0")[:512])
    data[510:512] = b"\x55\xaa"
    assert parse_fat(bytes(data)).size_bytes >= 0


def test_the_fields_of_the_others() -> None:
    xfs = b"XFSB" + struct.pack(">IQ", 4096, 1000) + bytes(500)
    assert parse_xfs(xfs) == Geometry(size_bytes=4_096_000, block_size=4096)
    fat = bytearray(512)
    struct.pack_into("<HB", fat, 11, 512, 8)
    struct.pack_into("<I", fat, 32, 204800)
    fat[0x41] = 1
    fat[510:512] = b"\x55\xaa"
    assert parse_fat(bytes(fat)) == Geometry(size_bytes=100 << 20, block_size=4096, dirty=True)
