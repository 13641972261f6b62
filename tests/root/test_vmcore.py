# SPDX-License-Identifier: GPL-3.0-or-later
"""The dump reader beside the tools of the field: makedumpfile, dpkg-deb, rpm, crash."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import dumps
from lab.disks import missing_tools, run
from lab.dumps import LOG, PAGE, Kernel, Machine, buffer_kernel, elf, kdump, note, ring_kernel

from rescue_agent.errors import UsageError
from rescue_agent.model.facts import Crash
from rescue_agent.probe.vmcore import read_crash
from rescue_agent.probe.vmcore.debuginfo import find_build_id, find_vmlinux
from rescue_agent.system.runner import Runner

pytestmark = pytest.mark.root

VMLINUX = elf(Machine(), note(b"GNU", 3, bytes.fromhex(dumps.BUILD_ID)), kind=2) + os.urandom(1 << 20)


def need(*names: str) -> None:
    missing = missing_tools(*names)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def read(path: Path, debuginfo: str = "") -> tuple[Crash, str]:
    work = path.parent / "run"
    crash, lines = read_crash(Runner(), str(path), work_dir=work, debuginfo=debuginfo)
    assert list(work.iterdir()) == []
    return crash, "".join(f"{line}\n" for line in lines)


def by_makedumpfile(dump: Path) -> str:
    out = dump.with_suffix(".dmesg")
    out.unlink(missing_ok=True)
    run("makedumpfile", "--dump-dmesg", dump, out)
    # It prints the bytes of a signed char: \xffffffc3 for \xc3.
    return out.read_text().replace("\\xffffff", "\\x")


def corpus_dump() -> Path:
    path = dumps.CORPUS / "panic-init-exit127.kdump"
    if not path.is_file():
        pytest.skip(f"{path} is not here: the dumps of a real kernel lie beside the repository")
    return path


def repacked(work: Path, *options: str) -> Path:
    """Return the real dump as makedumpfile writes it with these options."""
    target = work / "repacked"
    argv = ["makedumpfile", *options, "-d", "0", str(corpus_dump())]
    if "-F" in options:
        with open(target, "wb") as out:
            done = subprocess.run(argv, stdout=out, stderr=subprocess.PIPE, check=False)
    else:
        done = subprocess.run([*argv, str(target)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return target


def need_compression(name: str) -> None:
    """Skip when makedumpfile is built without it: then it writes such a dump uncompressed."""
    version = subprocess.run(["makedumpfile", "-v"], capture_output=True, text=True, check=False).stdout
    if not re.search(rf"^{name}\s+enabled", version, re.MULTILINE):
        pytest.skip(f"makedumpfile is built without {name}")


@pytest.mark.parametrize(
    "kernel",
    [
        lambda: buffer_kernel(Machine(phys_base=0)),
        lambda: buffer_kernel(Machine(phys_base=0), LOG[:9], name="printk_log"),
        lambda: ring_kernel(Machine()),
        lambda: ring_kernel(Machine(), LOG[:9]),
        lambda: ring_kernel(Machine(levels=5)),
    ],
    ids=["3.10", "4.18", "6.1", "6.1 not wrapped", "6.1 five levels"],
)
def test_the_log_is_what_makedumpfile_prints(kernel: Callable[[], Kernel], work: Path) -> None:
    need("makedumpfile")
    made = kernel()
    dump = work / "vmcore"
    for data in (kdump(made), elf(made.machine, note(b"VMCOREINFO", 0, made.info), kernel_map=True)):
        dump.write_bytes(data)
        assert read(dump)[1] == by_makedumpfile(dump) == "".join(f"{line}\n" for line in made.lines)


def test_a_real_dump_gives_what_makedumpfile_prints(work: Path) -> None:
    need("makedumpfile")
    dump = work / "vmcore"
    dump.write_bytes(corpus_dump().read_bytes())
    assert read(dump)[1] == by_makedumpfile(dump)


@pytest.mark.parametrize(
    ("options", "method"),
    [
        (("-c",), ""),
        (("-c", "-F"), ""),
        (("-l",), "lzo"),
        (("-l", "-F"), "lzo"),
        (("-p", "-F"), "snappy"),
    ],
    ids=["zlib", "zlib flattened", "lzo", "lzo flattened", "snappy flattened"],
)
def test_what_makedumpfile_writes(options: tuple[str, ...], method: str, work: Path) -> None:
    need("makedumpfile")
    if method:
        need_compression(method)
    dump = repacked(work, *options)
    crash, text = read(dump)
    assert crash.how == ("makedumpfile" if method else "note")
    assert crash.format.endswith("(flattened)") == ("-F" in options)
    assert text == (dumps.CORPUS / "panic-init-exit127.dmesg.txt").read_text()
    assert (crash.release, crash.build_id) == ("6.1.0-56-cloud-amd64", dumps.BUILD_ID)


def test_lzo_pages_below_a_header_with_a_wrong_phys_base(work: Path) -> None:
    """As QEMU writes it; makedumpfile alone fails on it."""
    need("makedumpfile")
    dump = repacked(work, "-l")
    with open(dump, "r+b") as file:
        file.seek(PAGE)
        file.write(struct.pack("<q", 0x482344960))
    with pytest.raises(AssertionError):
        by_makedumpfile(dump)
    assert read(dump)[1] == (dumps.CORPUS / "panic-init-exit127.dmesg.txt").read_text()


def test_pages_that_makedumpfile_cannot_read_either(work: Path) -> None:
    need("makedumpfile")
    dump = work / "vmcore"
    dump.write_bytes(kdump(ring_kernel(Machine()), flags=dumps.SNAPPY))
    with pytest.raises(UsageError, match="compressed with snappy, and makedumpfile fails") as caught:
        read(dump)
    assert "built without" in caught.value.hint


def test_a_dump_of_any_size_costs_little_memory(work: Path) -> None:
    """A terabyte, of which all but a few pages is a hole; no note, so all of it is searched."""
    kernel = ring_kernel(Machine(phys_base=0x1200000))
    machine = kernel.with_text_in_memory().machine
    start, size = 4096, 1 << 40
    program = struct.pack("<IIQQQQQQ", 1, 0, start, 0, 0, size, size, 0)
    dump = work / "vmcore"
    with open(dump, "wb") as file:
        file.write(elf(Machine())[:64] + program)
        for frame, page in machine.pages.items():
            file.seek(start + frame * PAGE)
            file.write(page)
        file.truncate(start + size)
        file.seek(56)
        file.write(struct.pack("<H", 1))
    code = (
        "import re, sys; from pathlib import Path\n"
        "from rescue_agent.probe.vmcore import read_crash; from rescue_agent.system.runner import Runner\n"
        "crash, lines = read_crash(Runner(), sys.argv[1], work_dir=Path(sys.argv[2]))\n"
        # Not getrusage(2), whose maximum is inherited from the process that started this one.
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())\n"
        "print(crash.how, crash.lines, peak[1])"
    )
    how, kind, lines, kibibytes = run(sys.executable, "-c", code, dump, work / "run").split()
    assert (how, kind, int(lines)) == ("memory", "scan", len(kernel.lines))
    assert int(kibibytes) < 200 << 10


# --- debug kernels ---------------------------------------------------------------------------------


def make_deb(work: Path, path: str) -> Path:
    tree = work / "tree"
    for name in (path, "usr/share/doc/x"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(VMLINUX if name == path else b"text")
    (tree / "usr/lib/debug/vmlinux-link").parent.mkdir(parents=True, exist_ok=True)
    (tree / "usr/lib/debug/vmlinux-link").symlink_to("/etc/passwd")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: linux-image-1-dbg\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    )
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "-b", tree, work / "x.deb")
    return work / "x.deb"


def make_rpm(work: Path, path: str) -> Path:
    need("rpmbuild", "rpm2archive")
    (work / "vmlinux.in").write_bytes(VMLINUX)
    (work / "x.spec").write_text(
        f"Name: kernel-debuginfo\nVersion: 1\nRelease: 1\nSummary: x\nLicense: x\nBuildArch: noarch\n"
        f"%global __os_install_post %{{nil}}\n"
        f"%global _binaries_in_noarch_packages_terminate_build 0\n%description\nx\n"
        f"%install\ninstall -D {work}/vmlinux.in %{{buildroot}}/{path}\n%files\n/{path}\n"
    )
    run("rpmbuild", "--quiet", "-bb", "--define", f"_topdir {work}/rpm", work / "x.spec")
    return next((work / "rpm/RPMS").rglob("*.rpm"))


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (make_deb, "usr/lib/debug/boot/vmlinux-6.1.0-1-amd64"),
        (make_deb, "usr/lib/debug/lib/modules/6.1.0/vmlinux"),
        (make_rpm, "usr/lib/debug/lib/modules/3.10.0-1160.el7.x86_64/vmlinux"),
    ],
)
def test_only_the_debug_kernel_is_unpacked(
    make: Callable[[Path, str], Path], path: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = make(work, path)
    folder = work / "run"
    folder.mkdir()
    found = find_vmlinux(Runner(), str(package), folder)
    assert list(folder.iterdir()) == [found] and found.read_bytes() == VMLINUX
    assert find_build_id(found) == dumps.BUILD_ID
    monkeypatch.setattr("rescue_agent.probe.vmcore.debuginfo.free_bytes", lambda folder: 1 << 10)
    with pytest.raises(UsageError, match="does not fit"):
        find_vmlinux(Runner(), str(package), folder)


def test_packages_without_a_debug_kernel(work: Path) -> None:
    package = make_deb(work, "usr/lib/debug/other")
    with pytest.raises(UsageError, match="holds no debug kernel"):
        find_vmlinux(Runner(), str(package), work)
    package.write_bytes(package.read_bytes()[:2000])
    with pytest.raises(UsageError, match="cannot be unpacked"):
        find_vmlinux(Runner(), str(package), work)
    rpm = work / "x.rpm"
    rpm.write_bytes(b"\xed\xab\xee\xdb" + os.urandom(500))
    need("rpm2archive")
    with pytest.raises(UsageError, match=r"cannot be unpacked|holds no debug kernel"):
        find_vmlinux(Runner(), str(rpm), work)


def test_what_crash_cannot_use_costs_nothing_that_is_known(work: Path) -> None:
    """The real crash where it is installed; without it the package is named."""
    kernel = ring_kernel(Machine())
    dump, vmlinux = work / "vmcore", work / "vmlinux"
    dump.write_bytes(kdump(kernel))
    vmlinux.write_bytes(VMLINUX)
    crash, text = read(dump, str(vmlinux))
    assert text.splitlines() == kernel.lines and crash.how == "note"
    expected = "install the package crash" if missing_tools("crash") else "crash cannot use it"
    assert len(crash.remarks) == 1 and expected in crash.remarks[0]
