# SPDX-License-Identifier: GPL-3.0-or-later
"""What an installed system says of itself, read from files alone: names, kernels, network, hazards."""

from __future__ import annotations

import errno
import posixpath
import re

from rescue_agent.errors import UnsafePath
from rescue_agent.model.document import printable
from rescue_agent.model.facts import Kernel, Program
from rescue_agent.model.families import get_family
from rescue_agent.probe.closure import Closures, follow
from rescue_agent.probe.elf import Abi
from rescue_agent.system.root import TargetRoot

MAX_KERNELS = 64
RESOLV_CONF = "/etc/resolv.conf"

_INIT = ("/sbin/init", "/etc/init", "/bin/init")
"""Where the kernel looks, in order (init/main.c, kernel_init)."""

_SEARCH = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")

_ARCHITECTURES = {
    ("EM_X86_64", 64): "amd64",
    ("EM_386", 32): "i386",
    ("EM_AARCH64", 64): "arm64",
    ("EM_ARM", 32): "armhf",
    ("EM_PPC64", 64): "ppc64el",
    ("EM_S390", 64): "s390x",
    ("EM_RISCV", 64): "riscv64",
    ("EM_LOONGARCH", 64): "loong64",
}


_SIGNS = (
    ("/etc/os-release", "/usr/lib/os-release"),
    ("/etc/fstab",),
    ("/etc/passwd",),
    ("/var/lib/dpkg/info", "/var/lib/rpm", "/usr/lib/sysimage/rpm", "/var/lib/pacman"),
    ("/usr/lib/systemd/systemd", "/bin/sh"),
)
"""Signs of an installed system without its init. One alone may be a copy or a backup of something."""


def is_system(root: TargetRoot) -> bool:
    """Return whether an operating system is installed in this tree, be it a damaged one."""
    # A filesystem that is mounted at /usr has sbin/init too, and share, which a root has not.
    if root.lexists("/sbin/init") and not root.is_folder("/share"):
        return True
    return sum(any(_is_there(root, path) for path in sign) for sign in _SIGNS) >= 2


def _is_there(root: TargetRoot, path: str) -> bool:
    """Return whether the patient has this path; OSError when its filesystem cannot tell."""
    try:
        root.lstat(path)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EUCLEAN, errno.EBADMSG):
            raise
        return False
    return True


def probe_init(root: TargetRoot, closures: Closures) -> Program:
    """Return the init that the kernel would start, with everything its loader needs."""
    name = next((path for path in _INIT if root.lexists(path)), _INIT[0])
    return closures.program(name)


def probe_tools(root: TargetRoot, closures: Closures, family: str) -> tuple[Program, ...]:
    """Return the programs that package repair inside a chroot stands on."""
    known = get_family(family)
    there = [name for name in known.optional_tools if root.lexists(_path_of(root, name))]
    return tuple(closures.program(_path_of(root, name)) for name in (*known.tools, *there))


def _path_of(root: TargetRoot, name: str) -> str:
    if name.startswith("/"):
        return name
    candidates = [f"{folder}/{name}" for folder in _SEARCH]
    return next((path for path in candidates if root.lexists(path)), f"/usr/bin/{name}")


def architecture_of(abi: Abi | None) -> str:
    """Return dpkg's name of what a program was built for; empty when it has none."""
    return _ARCHITECTURES.get(abi[:2], "") if abi else ""


def find_architecture(closures: Closures) -> str:
    """Return the architecture that the patient's basic programs were built for, or an empty string."""
    for path in ("/sbin/init", "/bin/sh", "/bin/cat", "/usr/bin/env"):
        name = architecture_of(closures.abi(path))
        if name:
            return name
    return ""


def first_line(root: TargetRoot, path: str) -> str:
    """Return the first line of a small file that is no comment, safe to print; empty when there is none."""
    try:
        text = root.read_text(path, 1 << 16)
    except (OSError, UnsafePath):
        return ""
    lines = (line.strip() for line in text.split("\n"))
    return printable(next((line for line in lines if line and not line.startswith("#")), ""))[:255]


def probe_machine_id(root: TargetRoot) -> str:
    """Return the machine ID (machine-id(5)); empty when it is not set."""
    value = first_line(root, "/etc/machine-id")
    return value if re.fullmatch(r"[0-9a-f]{32}", value) else ""


def probe_kernels(root: TargetRoot) -> tuple[Kernel, ...]:
    """Return the installed kernels by release, newest name last; each with the files that are there."""
    images: dict[str, str] = {}
    initramfs: dict[str, str] = {}
    for name in root.names("/boot")[:4096]:
        if re.search(r"(\.(old|bak|sig|hmac|dpkg-\w+)|~)\Z", name) or not root.is_file(f"/boot/{name}"):
            continue
        if match := re.match(r"(?:vmlinuz|vmlinux)-(.+)\Z", name):
            images[match[1]] = f"/boot/{name}"
        elif match := re.match(r"(?:initrd\.img-(.+)|initramfs-(.+)\.img|initrd-(.+?)(?:\.img)?)\Z", name):
            release = match[1] or match[2] or match[3]
            if not release.endswith(("kdump", "-fallback")):
                initramfs[release] = f"/boot/{name}"
    modules = {
        name
        for folder in ("/usr/lib/modules", "/lib/modules")
        for name in root.names(folder)[:1024]
        if root.is_folder(f"{folder}/{name}/kernel") or root.is_file(f"{folder}/{name}/modules.dep")
    }
    return tuple(
        Kernel(
            release=printable(release),
            image=printable(images.get(release, "")),
            initramfs=printable(initramfs.get(release, "")),
            modules=release in modules,
        )
        for release in sorted(images.keys() | modules, key=_version_key)[-MAX_KERNELS:]
    )


def _version_key(text: str) -> list[tuple[int, str]]:
    """Sort numbers by value, so that 6.9 comes before 6.10."""
    return [(int(p[:18]), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", text)]


def is_network_configured(root: TargetRoot) -> bool:
    """Return whether anything would bring up a network interface other than the loopback."""
    for path in ("/etc/network/interfaces", *_below(root, "/etc/network/interfaces.d", "")):
        try:
            text = root.read_text(path, 1 << 18)
        except (OSError, UnsafePath):
            continue
        if any(name != "lo" for name in re.findall(r"^\s*iface\s+(\S+)", text, re.MULTILINE)):
            return True
    folders = (
        ("/etc/netplan", ".yaml"),
        ("/etc/systemd/network", ".network"),
        ("/etc/NetworkManager/system-connections", ""),
        ("/etc/sysconfig/network", "ifcfg-eth0"),
    )
    if any(_below(root, folder, suffix) for folder, suffix in folders):
        return True
    scripts = _below(root, "/etc/sysconfig/network-scripts", "")
    if any("/ifcfg-" in path and not path.endswith("/ifcfg-lo") for path in scripts):
        return True
    # Both bring up every interface by DHCP without any configuration.
    return any(root.is_file(path) for path in ("/usr/sbin/NetworkManager", "/usr/bin/cloud-init"))


def _below(root: TargetRoot, folder: str, suffix: str) -> list[str]:
    return [f"{folder}/{name}" for name in root.names(folder)[:256] if name.endswith(suffix)]


def probe_resolv_conf(root: TargetRoot) -> str:
    """Return where /etc/resolv.conf leads inside the patient, whether or not anything lies there."""
    path = follow(root, RESOLV_CONF)
    return path if path and printable(path) == path else ""


def probe_file_contexts(root: TargetRoot) -> str:
    """Return the path of the file contexts of the patient's SELinux policy, or an empty string.

    Empty where SELinux is disabled as well: nothing there is labelled (selinux_config(5)).
    """
    try:
        text = root.read_text("/etc/selinux/config", 1 << 16)
    except (OSError, UnsafePath):
        return ""
    values = dict(re.findall(r"^[ \t]*(SELINUX|SELINUXTYPE)[ \t]*=[ \t]*([a-z-]+)", text, re.MULTILINE))
    path = f"/etc/selinux/{values.get('SELINUXTYPE', 'targeted')}/contexts/files/file_contexts"
    if values.get("SELINUX", "") not in ("enforcing", "permissive") or not root.is_file(path):
        return ""
    try:
        return root.resolve(path)
    except (OSError, UnsafePath):
        return ""


def probe_unusual(root: TargetRoot) -> tuple[str, ...]:
    """Return what makes work inside the patient unsafe, each in a sentence."""
    found = []
    for path in ("/dev", "/proc", "/sys", "/run", "/etc"):
        try:
            target = root.readlink(path)
        except (OSError, UnsafePath):
            if root.lexists(path) and not root.is_folder(path):
                found.append(f"{path} is not a folder")
            continue
        found.append(f"{path} is a link to {printable(target)}")
    try:
        target = root.readlink(RESOLV_CONF)
    except (OSError, UnsafePath):
        return tuple(found)
    if climbs_out(RESOLV_CONF, target):
        found.append(f"{RESOLV_CONF} is a link that leads out of the root, to {printable(target)}")
    return tuple(found)


def climbs_out(path: str, target: str) -> bool:
    """Return whether a link at ``path`` has more ``..`` than there are folders above it."""
    depth = 0 if target.startswith("/") else posixpath.dirname(path).count("/")
    for part in target.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return False
