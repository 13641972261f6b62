# SPDX-License-Identifier: GPL-3.0-or-later
"""os-release, links, kernels: what a tree says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_agent.probe.closure import follow, parse_ld_so_conf
from rescue_agent.probe.installed import climbs_out, is_network_configured, is_system, probe_kernels
from rescue_agent.probe.os_release import family_of, find_family, find_manager, parse_os_release
from rescue_agent.system.root import TargetRoot


def test_os_release_is_read_as_a_shell_would() -> None:
    text = '# c\nID=debian\nNAME="A \\"B\\" \\$x \\\\"\nV=\'1 $x\'\nW=a\\ b\nID = no\nbad line\nID=ubuntu\r\n'
    assert parse_os_release(text) == {"ID": "ubuntu", "NAME": 'A "B" $x \\', "V": "1 $x", "W": "a b"}


@given(st.text())
def test_any_os_release_is_taken(text: str) -> None:
    assert isinstance(parse_os_release(text), dict)


@pytest.mark.parametrize(
    ("release", "family"),
    [
        ({"ID": "debian"}, "debian"),
        ({"ID": "pop", "ID_LIKE": "ubuntu debian"}, "debian"),
        ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "rhel"),
        ({"ID": "opensuse-leap", "ID_LIKE": "suse opensuse"}, "suse"),
        ({"ID": "arch"}, "arch"),
        ({"ID": "nixos"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_families(release: dict[str, str], family: str) -> None:
    assert family_of(release) == family


def make(tree: Path, *paths: str) -> TargetRoot:
    for path in paths:
        place = tree / path
        if path.endswith("/"):
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("")
    return TargetRoot(tree)


def test_the_database_tells_the_family_when_nothing_else_does(tmp_path: Path) -> None:
    assert find_family(make(tmp_path / "d", "var/lib/dpkg/info/"), {}) == "debian"
    assert find_family(make(tmp_path / "r", "var/lib/rpm/"), {}) == "rhel"
    assert find_family(make(tmp_path / "s", "usr/lib/sysimage/rpm/", "usr/bin/zypper"), {}) == "suse"
    assert find_family(make(tmp_path / "a", "var/lib/pacman/local/"), {}) == "arch"
    assert find_family(make(tmp_path / "n", "x/"), {}) == "unknown"
    assert find_manager(make(tmp_path / "r"), "rhel") == "yum"
    assert find_manager(make(tmp_path / "r", "usr/bin/dnf"), "rhel") == "dnf"


def test_what_counts_as_a_system(tmp_path: Path) -> None:
    assert is_system(make(tmp_path / "a", "sbin/init"))
    assert is_system(make(tmp_path / "b", "usr/lib/os-release", "etc/passwd"))
    assert not is_system(make(tmp_path / "backup", "etc/os-release", "home/"))
    assert not is_system(make(tmp_path / "usr", "sbin/init", "share/doc/", "lib/os-release"))
    assert not is_system(make(tmp_path / "var", "lib/dpkg/status"))


def test_where_links_lead(tmp_path: Path) -> None:
    root = make(tmp_path, "etc/", "run/", "usr/lib/")
    (tmp_path / "lib").symlink_to("usr/lib")
    (tmp_path / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub.conf")
    (tmp_path / "etc/up").symlink_to("../../../../lib/x")
    (tmp_path / "etc/round").symlink_to("round")
    (tmp_path / "etc/a").symlink_to("b")
    (tmp_path / "etc/b").symlink_to("a")
    assert follow(root, "/etc/resolv.conf") == "/run/systemd/resolve/stub.conf"
    assert follow(root, "/etc/up") == "/usr/lib/x"
    assert follow(root, "/lib/none") == "/usr/lib/none"
    assert follow(root, "/etc/round") == follow(root, "/etc/a") == ""


@pytest.mark.parametrize(
    ("target", "climbs"),
    [
        ("../run/systemd/resolve/stub-resolv.conf", False),
        ("/run/x", False),
        ("x/../../y", False),
        ("../../x", True),
        ("../x/../../y", True),
        ("/../x", True),
    ],
)
def test_links_that_climb_out(target: str, climbs: bool) -> None:
    assert climbs_out("/etc/resolv.conf", target) is climbs


def test_kernels_of_other_distributions(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        "boot/vmlinuz-linux",
        "boot/initramfs-linux.img",
        "boot/initramfs-linux-fallback.img",
        "boot/vmlinuz-5.14.0-70.el9.x86_64",
        "boot/initramfs-5.14.0-70.el9.x86_64.img",
        "boot/initramfs-5.14.0-70.el9.x86_64kdump.img",
        "boot/.vmlinuz-5.14.0-70.el9.x86_64.hmac",
        "usr/lib/modules/5.14.0-70.el9.x86_64/modules.dep",
        "usr/lib/modules/6.4.0-1/kernel/",
    )
    found = {k.release: (k.image, k.initramfs, k.modules) for k in probe_kernels(root)}
    assert found == {
        "linux": ("/boot/vmlinuz-linux", "/boot/initramfs-linux.img", False),
        "5.14.0-70.el9.x86_64": (
            "/boot/vmlinuz-5.14.0-70.el9.x86_64",
            "/boot/initramfs-5.14.0-70.el9.x86_64.img",
            True,
        ),
        "6.4.0-1": ("", "", True),
    }


@pytest.mark.parametrize(
    ("path", "text", "configured"),
    [
        ("etc/network/interfaces", "iface lo inet loopback\n", False),
        ("etc/network/interfaces", "iface eth0 inet dhcp\n", True),
        ("etc/network/interfaces.d/x", "  iface ens3 inet6 auto\n", True),
        ("etc/netplan/01.yaml", "network: {}\n", True),
        ("etc/sysconfig/network-scripts/ifcfg-lo", "", False),
        ("etc/sysconfig/network-scripts/ifcfg-eth0", "", True),
    ],
)
def test_network(tmp_path: Path, path: str, text: str, configured: bool) -> None:
    root = make(tmp_path, path)
    (tmp_path / path).write_text(text)
    assert is_network_configured(root) is configured


def test_ld_so_conf() -> None:
    text = (
        "# c\n/usr/local/lib\ninclude /etc/ld.so.conf.d/*.conf  a.conf # x\nhwcap 0 nosegneg\n/opt/x=libc6\n"
    )
    assert parse_ld_so_conf(text) == (
        ("folder", "/usr/local/lib"),
        ("include", "/etc/ld.so.conf.d/*.conf"),
        ("include", "a.conf"),
        ("folder", "/opt/x"),
    )
