# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel logs out of memory dumps: every form of file, both kinds of log, real and made by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import dumps
from lab.dumps import (
    LOG,
    RELEASE,
    Bytes,
    Kernel,
    Machine,
    buffer_kernel,
    elf,
    flattened,
    kdump,
    note,
    ring_kernel,
)

from rescue_agent.probe.vmcore import read_crash
from rescue_agent.probe.vmcore.dump import Decoded, decode, open_memory
from rescue_agent.probe.vmcore.kernel import Kernel as Reader
from rescue_agent.probe.vmcore.memory import Memory
from rescue_agent.probe.vmcore.printk import Record, format_record
from rescue_agent.probe.vmcore.source import CompressedPages, NotInDump, Unreadable
from rescue_agent.probe.vmcore.unpack import unpack
from rescue_agent.probe.vmcore.vmcoreinfo import VmcoreInfo
from rescue_agent.system.runner import Runner


def nothing() -> None:
    """Never stop."""


def info_note(kernel: Kernel) -> bytes:
    return note(b"CORE", 1, bytes(336)) + note(b"VMCOREINFO", 0, kernel.info)


def memory_of(data: bytes) -> Memory:
    opened = open_memory(Bytes(data), nothing)
    assert opened is not None
    return opened.memory


def decoded(data: bytes) -> Decoded:
    return decode(memory_of(data), nothing)


FORMS: dict[str, Callable[[Kernel], bytes]] = {
    "elf": lambda kernel: elf(kernel.machine, info_note(kernel), kernel_map=True),
    "elf-qemu": lambda kernel: elf(kernel.machine, info_note(kernel), qemu=True),
    "elf-many": lambda kernel: elf(kernel.machine, info_note(kernel), qemu=True, many=True),
    "elf-many-end": lambda kernel: elf(kernel.machine, info_note(kernel), many=True),
    "elf-flattened": lambda kernel: flattened(elf(kernel.machine, info_note(kernel), kernel_map=True)),
    "kdump": kdump,
    "kdump-flattened": lambda kernel: flattened(kdump(kernel)),
    "kdump-pieces": lambda kernel: flattened(kdump(kernel), piece=97),
    "kdump-wrong-base": lambda kernel: kdump(kernel, phys_base=0x666000),
    "kdump-unknown-machine": lambda kernel: kdump(kernel, machine_name="Unknown"),
    "elf-no-note": lambda kernel: elf(
        kernel.with_text_in_memory().machine, note(b"CORE", 1, bytes(336)), qemu=True
    ),
    "kdump-no-note": lambda kernel: flattened(kdump(kernel.with_text_in_memory(), with_info=False)),
}
KERNELS: dict[str, Callable[[], Kernel]] = {
    "3.10": lambda: buffer_kernel(Machine()),
    "4.18": lambda: buffer_kernel(Machine(phys_base=0), name="printk_log"),
    "6.1": lambda: ring_kernel(Machine()),
    "6.1-below": lambda: ring_kernel(Machine(phys_base=-0xC00000)),
    "6.12-five-levels": lambda: ring_kernel(Machine(levels=5), exact=True),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_log_of_every_kernel_in_every_form(
    kernel: Callable[[], Kernel], form: Callable[[Kernel], bytes], request: pytest.FixtureRequest
) -> None:
    made = kernel()
    found = decoded(form(made))
    assert found.log == (made.lines, 0, False)
    assert made.lines[-1].endswith(f"[12345.678901] ---[ end {dumps.PANIC} ]---")
    assert found.info.release == RELEASE
    assert found.how == ("memory scan" if "no-note" in request.node.callspec.id else "note")


def test_both_logs_have_gone_round_and_the_oldest_records_are_gone() -> None:
    """Otherwise the tests above would not show that wrapping is understood."""
    for make in (ring_kernel, buffer_kernel):
        lines = make(Machine()).lines
        assert "Linux version" not in lines[0] and len(lines) > 20


def test_a_log_that_has_not_gone_round() -> None:
    for kernel in (ring_kernel(Machine(), LOG[:9]), buffer_kernel(Machine(), LOG[:9])):
        lines = decoded(kdump(kernel)).log.lines
        assert lines == kernel.lines and RELEASE in lines[0]
        assert lines[1:3] == [
            "[    1.500000] two lines",
            "               of one record, \\x1b[31mtab\there, caf\\xc3\\xa9",
        ]


@pytest.mark.parametrize("bits", range(9, 14))
@pytest.mark.parametrize("exact", [False, True])
def test_texts_that_end_where_the_ring_ends(bits: int, exact: bool) -> None:
    """Lengths that divide the ring: blocks meet its end, also where positions pass zero."""
    log = [(n, b"x" * (24, 56, 120)[n % 3]) for n in range(200)]
    kernel = ring_kernel(Machine(), log, text_bits=bits, exact=exact)
    assert decoded(kdump(kernel)).log.lines == kernel.lines


def test_a_record_that_was_still_being_written_is_left_out() -> None:
    kernel = ring_kernel(Machine(), LOG[:9])
    at = dumps.DIRECT + 0x7F000234560
    reader = Reader(memory_of(kdump(kernel)), VmcoreInfo(kernel.info))
    slot = at + (8 - 128) % 128 * 24
    frame = next(
        f for f in kernel.machine.pages if bytes(reader.read(slot, 8)) in bytes(kernel.machine.pages[f])
    )
    page = kernel.machine.pages[frame]
    where = page.index(reader.read(slot, 8))
    page[where + 7] &= 0x3F  # desc_reserved
    assert decoded(kdump(kernel)).log.lines == kernel.lines[:-1]


def test_identity() -> None:
    info = decoded(kdump(ring_kernel(Machine()))).info
    assert (info.release, info.build_id, info.crash_time) == (RELEASE, dumps.BUILD_ID, "2019-11-20T16:22:38Z")
    info = decoded(kdump(buffer_kernel(Machine()))).info
    assert (info.build_id, info.crash_time) == ("", "")


def test_a_kernel_that_does_not_tell_where_it_lies_is_found() -> None:
    """el7 in a dump by a hypervisor: no NUMBER(phys_base), no segment of its image, a wrong header."""
    kernel = buffer_kernel(Machine(phys_base=0x5600000))
    assert decoded(kdump(kernel, phys_base=12345)).log.lines == kernel.lines
    assert decoded(elf(kernel.machine, info_note(kernel))).log.lines == kernel.lines


def test_a_text_from_an_earlier_boot_is_not_believed() -> None:
    kernel = ring_kernel(Machine()).with_text_in_memory()
    stale = kernel.info.replace(b"NUMBER(phys_base)=", b"NUMBER(phys_base)=7")
    kernel.machine.poke(0x1000, stale + b"\0")
    kernel.machine.poke(0x3000, b"OSRELEASE=%s\n SYMBOL(swapper_pg_dir)=\0")
    found = decoded(elf(kernel.machine))
    assert (found.how, found.log.lines) == ("memory scan", kernel.lines)
    # A note that does not fit is not the end either.
    found = decoded(elf(kernel.machine, note(b"VMCOREINFO", 0, stale)))
    assert (found.how, found.log.lines) == ("memory scan", kernel.lines)


def test_large_pages() -> None:
    machine = Machine()
    kernel = ring_kernel(machine)
    machine.map(0xFFFFA00000000000, 0x40000000, shift=30)
    machine.map(0xFFFFA00040200000, 0x600000, shift=21)
    machine.poke(0x40000000 + 0x12345678, b"gigabyte")
    machine.poke(0x600000 + 0x123456, b"megabyte")
    reader = Reader(memory_of(elf(machine)), VmcoreInfo(kernel.info))
    assert reader.read(0xFFFFA00000000000 + 0x12345678, 8) == b"gigabyte"
    assert reader.read(0xFFFFA00040200000 + 0x123456, 8) == b"megabyte"
    with pytest.raises(NotInDump, match="nothing mapped"):
        reader.read(0xFFFFB00000000000, 1)


@pytest.mark.parametrize(("page_shift", "bits"), [(12, 48), (12, 39), (14, 47), (16, 42), (16, 48), (16, 52)])
def test_aarch64_page_tables(page_shift: int, bits: int) -> None:
    """Tables as the Arm ARM (D8) has them; the numbers are those that the kernel's VMCOREINFO tells."""
    machine, page, width = Machine(), 1 << page_shift, page_shift - 3
    kimage, image, root, virtual = (
        0xFFFF800008000000,
        0x40200000,
        0x40210000,
        (1 << 64) - (1 << bits) + 0x123456789A,
    )
    high = 3 << 48 if bits == 52 else 0
    levels = -(-(bits - page_shift) // width)
    table = root
    for level in reversed(range(levels)):
        index = (virtual & (1 << bits) - 1) >> (page_shift + level * width) & (1 << width) - 1
        target = table + 0x10000 if level else 0x7_0000_0000 | high
        entry = target & (1 << 48) - 1 | target >> 48 << 12 | 3 | 1 << 54
        machine.poke(table + index * 8, struct.pack("<Q", entry))
        table = target
    machine.poke(table + virtual % page, b"here it is")
    machine.poke(image + 0x9000, b"Linux\0".ljust(130, b"\0") + b"5.4.0\0")
    values = {
        "OSRELEASE": "5.4.0",
        "PAGESIZE": page,
        "SYMBOL(init_uts_ns)": f"{kimage + 0x9000:x}",
        "SYMBOL(swapper_pg_dir)": f"{kimage + root - image:x}",
        "NUMBER(VA_BITS)": 52 if page_shift == 16 else bits,
        "NUMBER(kimage_voffset)": hex(kimage - image),
        "NUMBER(TCR_EL1_T1SZ)": hex(64 - bits),
    }
    info = VmcoreInfo("".join(f"{key}={value}\n" for key, value in values.items()).encode())
    reader = Reader(memory_of(elf(machine, arch=183)), info)
    assert reader.read(virtual, 10) == b"here it is"
    for unmapped in (virtual + (1 << page_shift + width), virtual - (1 << bits), 0x1000):
        with pytest.raises(NotInDump):
            reader.read(unmapped, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"plain", "[    0.000001] plain"),
        (b"a\nb", "[    0.000001] a\n               b"),
        (b"\x00\x7f\xff\r\t.", "[    0.000001] \\x00\\x7f\\xff\\x0d\t."),
    ],
)
def test_what_a_line_looks_like(text: bytes, expected: str) -> None:
    assert format_record(Record(1999, text)) == expected


# --- what cannot be read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (elf(Machine(), kind=2), "program or a kernel image"),
        (elf(Machine(), note(b"CORE", 6, bytes(16))), "core dump of one process"),
        (b"\x7fELF\1\1\1" + bytes(100), "32-bit or big-endian"),
        (b"\x7fELF\2\1", "ends within the ELF header"),
        (elf(Machine())[:56] + b"\0\0" + elf(Machine())[58:64], "no program headers"),
        (kdump(ring_kernel(Machine()))[:3000], "ends within the kdump sub-header"),
        (kdump(ring_kernel(Machine()))[:9000], "ends within the bitmap"),
        (kdump(ring_kernel(Machine()), split=1), "makedumpfile --reassemble"),
        (kdump(ring_kernel(Machine()), machine_name="ppc64le"), "'ppc64le', whose page tables are not known"),
        (kdump(ring_kernel(Machine()), with_info=False), "no VMCOREINFO"),
        (flattened(kdump(ring_kernel(Machine())))[:5000], "the dump.s header, is missing"),
        (flattened(b"x" * 5000), "the dump's header, is missing"),
        (flattened(b"x" * 5000)[:4096], "ends before its first piece"),
    ],
)
def test_why_it_cannot_be_read(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        decoded(data)


@pytest.mark.parametrize(("flag", "name"), [(dumps.LZO, "lzo"), (dumps.SNAPPY, "snappy")])
def test_compressions_that_python_lacks(flag: int, name: str) -> None:
    with pytest.raises(CompressedPages, match=name) as caught:
        decoded(kdump(ring_kernel(Machine()), flags=flag))
    assert caught.value.method == name


def test_zstd_pages() -> None:
    kernel = ring_kernel(Machine())
    assert decoded(kdump(kernel, flags=dumps.ZSTD)).log.lines == kernel.lines


@pytest.mark.parametrize(
    "missing", ["SYMBOL(prb)", "SIZE(prb_desc)", "OFFSET(printk_info.ts_nsec)", "PAGESIZE=", "OSRELEASE="]
)
def test_a_vmcoreinfo_that_lacks_something(missing: str) -> None:
    kernel = ring_kernel(Machine())
    lines = [line for line in kernel.info.splitlines(keepends=True) if missing.encode() not in line]
    less = Kernel(kernel.machine, b"".join(lines), [])
    if missing == "PAGESIZE=":
        assert decoded(kdump(less)).log.lines == kernel.lines
        return
    with pytest.raises(Unreadable, match=r"VMCOREINFO|way that is not known"):
        decoded(kdump(less))


def test_records_whose_memory_is_missing_are_counted() -> None:
    kernel = ring_kernel(Machine(), [(n, b"%03d " % n + b"y" * 60) for n in range(100)])
    del kernel.machine.pages[0x301]
    log = decoded(kdump(kernel)).log
    assert 0 < log.lost < 100 and len(log.lines) + log.lost == len(kernel.lines)
    assert set(log.lines) < set(kernel.lines)


def test_a_broken_chain_of_records_keeps_what_came_before() -> None:
    kernel = buffer_kernel(Machine(), [(n, b"%03d " % n + b"y" * 60) for n in range(90)])
    del kernel.machine.pages[0x301]
    log = decoded(kdump(kernel)).log
    assert log.lost == 1 and log.lines == kernel.lines[: len(log.lines)]


# --- whole files -----------------------------------------------------------------------------------


def corpus(name: str) -> Path:
    path = dumps.CORPUS / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: the dumps of a real kernel lie beside the repository")
    return path


@pytest.mark.parametrize("name", ["panic-init-exit127.kdump", "panic-init-exit127.qemu.elf.xz"])
def test_a_real_dump_gives_its_text_byte_for_byte(name: str, tmp_path: Path) -> None:
    crash, lines = read_crash(Runner(), str(corpus(name)), work_dir=tmp_path / "run")
    expected = corpus("panic-init-exit127.dmesg.txt").read_text()
    assert "".join(f"{line}\n" for line in lines) == expected
    assert crash.panic == dumps.PANIC
    assert (crash.release, crash.build_id) == ("6.1.0-56-cloud-amd64", dumps.BUILD_ID)
    assert (crash.uptime_s, crash.lines, crash.lost, crash.how) == (3.624938, 367, 0, "note")
    assert crash.format == ("kdump-compressed" if name.endswith("kdump") else "ELF, packed with xz")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_real_dump_without_its_note(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    unpack(corpus("panic-init-exit127.qemu.elf.xz"), "xz", dump, nothing)
    with open(dump, "r+b") as file:
        start = file.read(1 << 16).index(b"VMCOREINFO\0")
        file.seek(start)
        file.write(bytes(2500))
    crash, lines = read_crash(Runner(), str(dump), work_dir=tmp_path)
    assert crash.how == "memory scan" and crash.release == "6.1.0-56-cloud-amd64"
    assert "".join(f"{line}\n" for line in lines) == corpus("panic-init-exit127.dmesg.txt").read_text()


def test_a_real_dump_flattened(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_bytes(flattened(corpus("panic-init-exit127.kdump").read_bytes(), 16384))
    crash, lines = read_crash(Runner(), str(dump), work_dir=tmp_path)
    assert crash.format == "kdump-compressed (flattened)"
    assert "".join(f"{line}\n" for line in lines) == corpus("panic-init-exit127.dmesg.txt").read_text()
