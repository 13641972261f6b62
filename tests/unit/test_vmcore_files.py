# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are named as dumps: what they are, what lies beside them, what crash says of them."""

from __future__ import annotations

import gzip
import lzma
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import dumps
from lab.dumps import PANIC, RELEASE, Machine, buffer_kernel, elf, flattened, kdump, note, ring_kernel

from rescue_agent.errors import Interrupted, UsageError
from rescue_agent.model.facts import Crash
from rescue_agent.probe.vmcore import beside, read_crash, unpack
from rescue_agent.probe.vmcore.debugger import COMMANDS, crash_argv, parse_output
from rescue_agent.probe.vmcore.formats import name_format
from rescue_agent.probe.vmcore.summary import find_panic, find_uptime_s
from rescue_agent.system.runner import Runner

KERNEL = ring_kernel(Machine())
DUMP = elf(KERNEL.machine, note(b"VMCOREINFO", 0, KERNEL.info), qemu=True)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "crash" / "vmcore"
    path.parent.mkdir()
    path.write_bytes(DUMP)
    return path


def read(path: Path, debuginfo: str = "") -> tuple[Crash, list[str]]:
    run = path.parent.parent / "run"
    try:
        return read_crash(Runner(), str(path), work_dir=run, debuginfo=debuginfo)
    finally:
        assert not run.exists() or list(run.iterdir()) == [], "something is left in the run's folder"


def refusal(path: Path, debuginfo: str = "") -> UsageError:
    with pytest.raises(UsageError) as caught:
        read(path, debuginfo)
    return caught.value


def test_a_dump(dump: Path) -> None:
    crash, lines = read(dump)
    assert lines == KERNEL.lines
    assert crash == Crash(
        source=str(dump),
        format="ELF",
        release=RELEASE,
        build_id=dumps.BUILD_ID,
        crash_time="2019-11-20T16:22:38Z",
        uptime_s=12345.678901,
        panic=PANIC,
        how="note",
        lines=len(lines),
    )


# --- files of other kinds --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "name", "is_a", "advice"),
    [
        (b"QEVM\0\0\0\3", "", "a QEMU migration stream", "virsh dump --memory-only"),
        (b"LibvirtQemudSave\0\0\0\2", "", "a libvirt save file", "-incoming"),
        (struct.pack("<II", 0xBED2BED2, 8), "x.vmss", "a VMware state file", "vmss2core"),
        (b"\xf0\xff" + bytes(100), "guest.vmem", "the memory file of a VMware guest", "vmss2core"),
        (b"\x01\x02" + bytes(100), "guest.vmrs", "a Hyper-V saved state", "kdump write a dump inside"),
        (struct.pack("<I", 0xF00FEBEE), "", "a Xen HVM core", "--debuginfo"),
        (struct.pack("<Q", 0xA8190173618F23ED), "", "an LKCD dump", "--debuginfo"),
        (b"DISKDUMP", "", "a diskdump file", "--debuginfo"),
        (b"PAGEDU64", "", "a Windows crash dump", "Windows"),
        (b"\x7fVirtualBox SavedState V2.0", "", "a VirtualBox saved state", "dumpvmcore"),
        (b"QFI\xfb\0\0\0\3", "", "a qcow2 disk image", "as the disk"),
        (bytes(510) + b"\x55\xaa" + bytes(8), "", "a disk image", "as the disk"),
        (bytes(1080) + b"\x53\xef", "", "a disk image", "as the disk"),
        (b"\x28\xb5\x2f\xfd1234", "", "compressed with zstd", "zstd -d"),
        (bytes(257) + b"ustar\0", "", "a tar archive", "tar -xf"),
        (b"[    0.000000] Linux version\n", "", "a text file", "--log"),
        (bytes(5000), "", "a file that begins with nothing but zeros", "failed copy"),
        (b"", "", "empty", "no room"),
        (b"\x90\x01\x02", "x", "in no known form", "virsh dump --memory-only"),
    ],
)
def test_what_else_it_may_be(head: bytes, name: str, is_a: str, advice: str, tmp_path: Path) -> None:
    path = tmp_path / "crash" / (name or "file")
    path.parent.mkdir()
    path.write_bytes(head)
    error = refusal(path)
    assert f"{path} is {is_a}" in error.message and advice in error.hint


@given(st.binary(max_size=100))
def test_whatever_it_is_it_has_a_name(head: bytes) -> None:
    assert all(name_format(head, "x")[:2])


def test_what_is_no_file_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "crash"
    folder.mkdir()
    os.mkfifo(folder / "fifo")
    assert "No such file" in refusal(folder / "missing").message
    assert "no regular file" in refusal(folder / "fifo").message
    assert "/var/crash/…/vmcore" in refusal(folder).hint
    (folder / "device").symlink_to("/dev/zero")
    assert "no regular file" in refusal(folder / "device").message


def test_a_damaged_dump_says_so(dump: Path) -> None:
    dump.write_bytes(DUMP[:300])
    error = refusal(dump)
    assert "memory dump, but it cannot be read" in error.message and "--debuginfo" in error.hint
    dump.write_bytes(elf(Machine()))
    assert "it has no program headers" in refusal(dump).message or "no VMCOREINFO" in refusal(dump).message


def test_a_dump_that_is_cut_off_says_so_and_gives_what_it_has(dump: Path) -> None:
    machine = KERNEL.machine
    machine.poke(0x9000000, b"more memory, of no interest")
    whole = elf(machine, note(b"VMCOREINFO", 0, KERNEL.info))
    del machine.pages[0x9000]
    dump.write_bytes(whole[:-100])
    crash, lines = read(dump)
    assert lines == KERNEL.lines
    assert crash.remarks == ("the file is cut off: 100 bytes are missing at its end",)


def test_compressed_pages_without_makedumpfile(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "which", lambda self, name: "")
    for flag, name in ((dumps.LZO, "lzo"), (dumps.SNAPPY, "snappy")):
        dump.write_bytes(flattened(kdump(KERNEL, flags=flag)))
        error = refusal(dump)
        assert f"compressed with {name}" in error.message and "install the package makedumpfile" in error.hint


# --- text beside the dump --------------------------------------------------------------------------


def kernel_text(release: str = RELEASE) -> str:
    first = f"[    0.000000] Linux version {release} (x)\n"
    return f"{first}[    9.000000] told \x1b[2J by\tkdump\n[    9.500000] {PANIC}\n"


@pytest.mark.parametrize("name", ["vmcore-dmesg.txt", "dmesg.txt"])
def test_ready_made_text_is_preferred(dump: Path, name: str) -> None:
    (dump.parent / name).write_text(kernel_text())
    crash, lines = read(dump)
    assert lines[1] == "[    9.000000] told \\x1b[2J by\tkdump"
    assert (crash.how, crash.panic, crash.lines) == (f"{name} beside the dump", PANIC, 3)
    assert (crash.format, crash.build_id) == ("ELF", dumps.BUILD_ID)


def test_the_text_of_debian_bears_the_time_of_its_dump(dump: Path) -> None:
    dump = dump.rename(dump.parent / "dump.202611230101")
    (dump.parent / "dmesg.202611230101").write_text(kernel_text())
    (dump.parent / "dmesg.202611229999").write_text(kernel_text("another"))
    assert read(dump)[0].how == "dmesg.202611230101 beside the dump"


def test_the_text_of_another_kernel_is_not_used(dump: Path) -> None:
    (dump.parent / "vmcore-dmesg.txt").write_text(kernel_text("6.1.0"))
    crash, lines = read(dump)
    assert lines == KERNEL.lines
    assert crash.remarks == ("vmcore-dmesg.txt beside it is of another kernel (6.1.0) and was not used",)


@pytest.mark.parametrize("text", ["", "kdump: saving vmcore failed\n", "\0" * 5000])
def test_a_text_that_is_no_kernel_log_is_not_used(dump: Path, text: str) -> None:
    (dump.parent / "vmcore-dmesg.txt").write_text(text)
    (dump.parent / "dmesg.txt").mkdir()
    assert read(dump)[1] == KERNEL.lines


def test_a_dump_that_cannot_be_read_with_its_text(dump: Path) -> None:
    (dump.parent / "vmcore-dmesg.txt").write_text(kernel_text())
    for data, form in ((b"QEVM\0\0\0\3", "a QEMU migration stream"), (DUMP[:100], "a damaged dump")):
        dump.write_bytes(data)
        crash, lines = read(dump)
        assert len(lines) == 3 and crash.release == RELEASE and crash.format.startswith(form)
        assert crash.remarks and str(dump) in crash.remarks[0]
    dump.write_bytes(lzma.compress(DUMP)[:100])
    assert read(dump)[0].format == "packed with xz"


def test_pstore(dump: Path) -> None:
    """The last part is the oldest; the newest record counts."""
    parts = {
        1: kernel_text().splitlines()[2],
        2: kernel_text().splitlines()[1],
        3: kernel_text().splitlines()[0],
    }
    for part, line in parts.items():
        (dump.parent / f"dmesg-efi-16{part}").write_text(f"Panic#2 Part{part}\n{line}\n")
        (dump.parent / f"dmesg-efi-15{part}").write_text(f"Oops#1 Part{part}\n[    1.000000] older\n")
    (dump.parent / "dmesg-efi-164.enc.z").write_bytes(b"\x78\x9c")
    crash, lines = read(dump)
    assert crash.how == "pstore beside the dump"
    assert [line[:14] for line in lines] == ["[    0.000000]", "[    9.000000]", "[    9.500000]"]


def test_of_a_long_text_the_end_is_kept(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "MAX_BYTES", 1000)
    text = "".join(f"[    1.{n:06}] line\n" for n in range(100))
    (dump.parent / "vmcore-dmesg.txt").write_text(text)
    lines = read(dump)[1]
    assert 30 < len(lines) < 100 and lines == text.splitlines()[-len(lines) :]


# --- packed as a whole -----------------------------------------------------------------------------


def packed(method: str, data: bytes) -> bytes:
    return lzma.compress(data) if method == "xz" else gzip.compress(data, 1)


@pytest.mark.parametrize("method", ["xz", "gzip"])
def test_packed(dump: Path, method: str) -> None:
    middle = len(DUMP) // 2
    for data in (
        packed(method, DUMP),
        packed(method, DUMP[:middle]) + packed(method, DUMP[middle:]) + bytes(8),
    ):
        dump.write_bytes(data)
        crash, lines = read(dump)
        assert lines == KERNEL.lines and crash.format == f"ELF, packed with {method}"


@pytest.mark.parametrize("method", ["xz", "gzip"])
def test_packed_and_damaged(dump: Path, method: str) -> None:
    data = packed(method, DUMP)
    spoiled = bytearray(data)
    spoiled[len(data) // 2] ^= 0xFF
    for bad in (data[: len(data) // 2], data[:7], bytes(spoiled)):
        dump.write_bytes(bad)
        assert f"the {method} file is damaged or cut off" in refusal(dump).message


def test_packed_without_room(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump.write_bytes(packed("xz", DUMP))
    monkeypatch.setattr(unpack, "KEEP_FREE_BYTES", 1 << 60)
    error = refusal(dump)
    assert "does not fit" in error.message and "make room" in error.hint


def test_an_xz_file_that_wants_much_memory(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump.write_bytes(packed("xz", DUMP))
    monkeypatch.setattr(unpack, "_LZMA_MEMORY", 1 << 16)
    assert "Memory usage limit" in refusal(dump).message


def test_runs_of_zeros_become_holes(tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(gzip.compress(b"x" + bytes(64 << 20) + b"y", 1))
    unpack.unpack(tmp_path / "packed", "gzip", tmp_path / "out", lambda: None)
    status = (tmp_path / "out").stat()
    assert status.st_size == (64 << 20) + 2 and status.st_blocks * 512 < 8 << 20


def test_the_person_can_stop_it(dump: Path) -> None:
    runner = Runner()
    runner.cancel.cancel()
    dump.write_bytes(packed("xz", DUMP))
    with pytest.raises(Interrupted):
        read_crash(runner, str(dump), work_dir=dump.parent.parent / "run")
    dump.write_bytes(kdump(KERNEL, with_info=False))
    with pytest.raises(Interrupted):
        read_crash(runner, str(dump), work_dir=dump.parent.parent / "run")


# --- the end of a log ------------------------------------------------------------------------------


END = "[    3.0] ---[ end Kernel panic - not syncing: y ]---"
FAULT = "BUG: unable to handle page fault for address: 1"


@pytest.mark.parametrize(
    ("lines", "panic"),
    [
        (["[    1.0] a", f"[    2.0] {PANIC}", END], PANIC),
        ([f"[    2.0] [    T1] {PANIC}"], PANIC),
        ([f"<0>[    2.0] {PANIC}"], PANIC),
        ([f"[    1.0] {FAULT}", "[    1.1] Oops: 0002 [#1] SMP"], FAULT),
        ([f"[    1.0] {FAULT}", "[    9.0] sysrq: Trigger a crash"], "sysrq: Trigger a crash"),
        ([END, "[    1.0] systemd[1]: Started."], ""),
        ([], ""),
    ],
)
def test_panic(lines: list[str], panic: str) -> None:
    assert find_panic(lines) == panic


def test_uptime() -> None:
    assert find_uptime_s(["[    1.5] a", "<6>[12345.678901] b", "  continued"]) == 12345.678901
    assert find_uptime_s(["no stamp"]) is None


# --- crash(8) and the debug kernel ------------------------------------------------------------------

CRASH_OUTPUT = """\
crash: cannot determine thread return address
WARNING: active task ffff8e33c11eb000 on cpu 0 not found in PID hash

      KERNEL: vmlinux-6.1.0-56-cloud-amd64
    DUMPFILE: panic-init-exit127.kdump  [PARTIAL DUMP]
        CPUS: 1
        DATE: Mon Nov 23 01:01:27 UTC 2026
      UPTIME: 00:00:03
LOAD AVERAGE: 0.00, 0.00, 0.00
       TASKS: 2
    NODENAME: (none)
     RELEASE: 6.1.0-56-cloud-amd64
     VERSION: #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)
     MACHINE: x86_64  (2445 Mhz)
      MEMORY: 127.5 MB
       PANIC: "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00"
PID: 1        TASK: ffff8e33c11eb000  CPU: 0    COMMAND: "systemd"
 #0 [ffffd45a00013c58] panic at ffffffffa19cd21a
 #1 [ffffd45a00013d38] do_group_exit at ffffffffa109b32d
#15 [ffffd45a00013f50] entry_SYSCALL_64_after_hwframe at ffffffffa1c00126
    RIP: 00007fbeb7face51  RSP: 00007fff37c95b38  RFLAGS: 00000246
    ORIG_RAX: 00000000000000e7  CS: 0033  SS: 002b
      PID    PPID  CPU       TASK        ST  %MEM      VSZ      RSS  COMM
>       1       0   0  ffff8e33c11eb000  RU   0.0        0        0  systemd
[    0.000000] Linux version 6.1.0-56-cloud-amd64
[    3.624938] PID: 9        TASK: 0  CPU: 9    COMMAND: "not the task"
"""
"""What crash 8.0.2 printed of a real dump, shortened."""


def test_what_crash_prints() -> None:
    found = parse_output(CRASH_OUTPUT)
    assert found.task == "systemd, PID 1, on CPU 0"
    assert found.backtrace == (
        "#0 [ffffd45a00013c58] panic at ffffffffa19cd21a",
        "#1 [ffffd45a00013d38] do_group_exit at ffffffffa109b32d",
        "#15 [ffffd45a00013f50] entry_SYSCALL_64_after_hwframe at ffffffffa1c00126",
    )
    assert found.value("RELEASE") == "6.1.0-56-cloud-amd64" and found.value("UPTIME") == "00:00:03"
    assert "DATE: Mon Nov 23 01:01:27 UTC 2026" in found.system and not found.value("KERNEL")
    assert len(found.running) == 2 and found.running[1].endswith("systemd")
    assert len(found.log) == 2 and found.log[-1].startswith("[    3.624938] PID: 9")


@given(st.text(max_size=400))
def test_whatever_crash_prints_is_fit_for_a_terminal(text: str) -> None:
    found = parse_output(CRASH_OUTPUT[:300] + text)
    assert all(
        line.isprintable()
        for part in (found.system, found.backtrace, found.running, found.log)
        for line in part
    )


def test_how_crash_is_called() -> None:
    """Nobody answers a question or pages the output, and no start-up file of the person is run."""
    argv = crash_argv(Path("/run/cmds"), Path("/run/vmlinux"), Path("/var/crash/vmcore"))
    assert argv[:5] == ("crash", "--no_crashrc", "--no_scroll", "-s", "-i")
    assert argv[5:] == ("/run/cmds", "/run/vmlinux", "/var/crash/vmcore")
    assert set(COMMANDS) >= {"sys", "bt", "log"} and COMMANDS[-1] == "quit"


def test_a_debug_kernel_of_another_build(dump: Path, tmp_path: Path) -> None:
    other = tmp_path / "vmlinux"
    other.write_bytes(elf(Machine(), note(b"GNU", 3, b"\x12\x34"), kind=2))
    error = refusal(dump, str(other))
    assert "build-id 1234" in error.message and dumps.BUILD_ID in error.message and RELEASE in error.hint


@pytest.mark.parametrize("content", [b"", b"a text\n", b"\x7fELF\1\1\1", b"\x7fELF"])
def test_what_is_no_debug_kernel(dump: Path, tmp_path: Path, content: bytes) -> None:
    other = tmp_path / "vmlinux"
    other.write_bytes(content)
    error = refusal(dump, str(other))
    assert str(other) in error.message and "kernel-debuginfo" in error.hint
    assert "cannot be opened" in refusal(dump, str(tmp_path / "missing")).message


def test_log_buffers_of_old_kernels_as_files(dump: Path) -> None:
    kernel = buffer_kernel(Machine())
    dump.write_bytes(flattened(kdump(kernel)))
    crash, lines = read(dump)
    assert lines == kernel.lines
    assert (crash.format, crash.build_id, crash.crash_time) == ("kdump-compressed (flattened)", "", "")
