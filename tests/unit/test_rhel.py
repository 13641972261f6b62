# SPDX-License-Identifier: GPL-3.0-or-later
"""What rpm, dnf and yum say and keep, read without any of them; captured from rpm 4.18 and dnf 4.14."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_agent.errors import RescueError
from rescue_agent.model.facts import InstalledPackage
from rescue_agent.model.families.rhel import PLACES
from rescue_agent.model.families.rpm import release_version
from rescue_agent.probe.families import suse
from rescue_agent.probe.families.rpm import database, history, sources, verification
from rescue_agent.system.root import TargetRoot

VERIFY = """\
missing   c /etc/hosts
missing     /usr/bin/ls
missing     /run/lvm (Permission denied)
S.5....T.  c /etc/profile
....L....    /usr/bin/awk
S.5....T.    /usr/bin/cat
..?......    /usr/bin/bad blocks here
.M.......  g /boot/initramfs-1.img
.....UG..    /usr/bin/ln
........P    /usr/bin/ping
.......T.    /usr/bin/rm
Unsatisfied dependencies for foo-1-1.x86_64:
package nosuch is not installed
"""


def test_differences_of_time_alone_are_none() -> None:
    found = {d.path: (d.flags, d.attribute) for d in verification.parse_verify(VERIFY)}
    assert found == {
        "/etc/hosts": ("missing", "c"),
        "/usr/bin/ls": ("missing", ""),
        "/run/lvm": ("missing", ""),
        "/etc/profile": ("S.5....T.", "c"),
        "/usr/bin/awk": ("....L....", ""),
        "/usr/bin/cat": ("S.5....T.", ""),
        "/usr/bin/bad blocks here": ("..?......", ""),
        "/boot/initramfs-1.img": (".M.......", "g"),
        "/usr/bin/ln": (".....UG..", ""),
        "/usr/bin/ping": ("........P", ""),
    }


def test_what_rpm_could_not_look_at_is_not_called_healthy() -> None:
    verification.refuse_silence("....L....    /usr/bin/awk\n", "rpm: RPM should not be used directly\n")
    with pytest.raises(RescueError, match="bash-1-1 is not installed"):
        verification.refuse_silence("package bash-1-1 is not installed\n", "")
    with pytest.raises(RescueError, match="cannot open Packages"):
        verification.refuse_silence("", "error: cannot open Packages index using sqlite\n")


@given(st.text())
def test_any_text_is_taken(text: str) -> None:
    assert isinstance(verification.parse_verify(text), tuple)
    assert isinstance(database.parse_packages(text), tuple)
    assert isinstance(sources.parse_checksig(text), dict)
    assert isinstance(sources.parse_offers(text), tuple)
    assert isinstance(list(sources.parse_repositories(text, signed=True)), list)
    history.parse_yumdb(text)


PACKAGES = """\
gpg-pubkey\t0\t5bb06f49-6a\t(none)\t0\t1795544688\t1
bash\t0\t5.2.15-2.lab\tx86_64\t7099902\t1795544690\t118
bind-libs\t32\t9.11.36-3\tx86_64\t100\t1795544690\t2
bash\t0\t5.1.8-1.lab\tx86_64\t7000000\t1795544600\t7
kernel-core\t0\t4.18.0-513\tx86_64\t1\t1795544600\t8
kernel-core\t0\t4.18.0-553\tx86_64\t1\t1795544700\t9
a line that is none
"""


def test_packages_in_the_order_of_their_installation_without_keys() -> None:
    found = database.parse_packages(PACKAGES)
    assert [(p.name, p.version) for p in found] == [
        ("bash", "5.1.8-1.lab"),
        ("kernel-core", "4.18.0-513"),
        ("bind-libs", "32:9.11.36-3"),
        ("bash", "5.2.15-2.lab"),
        ("kernel-core", "4.18.0-553"),
    ]
    assert found[2].labels[-1] == "bind-libs-9.11.36-3.x86_64"
    assert found[3].installed_bytes == 7099902


def test_only_the_half_that_an_upgrade_left_is_superseded() -> None:
    marked = database.mark_superseded(database.parse_packages(PACKAGES))
    assert [p.labels[-1] for p in marked if p.state == database.SUPERSEDED] == ["bash-5.1.8-1.lab.x86_64"]


def test_what_is_installed_after_a_history() -> None:
    rows = [
        ("bash", 0, "5.1", "1", "x86_64", 1),
        ("less", 0, "590", "1", "x86_64", 1),
        ("bash", 0, "5.2", "1", "x86_64", 6),
        ("bash", 0, "5.1", "1", "x86_64", 7),
        ("less", 0, "590", "1", "x86_64", 8),
        ("bind", 32, "9.11", "3", "x86_64", 1),
        ("bind", 32, "9.11", "3", "x86_64", 9),
        ("bind", 32, "9.11", "3", "x86_64", 10),
    ]
    found = {(p.name, p.version) for p in history.installed_after(rows)}
    assert found == {("bash", "5.2-1"), ("bind", "32:9.11-3")}


def test_a_folder_of_yums_database_names_a_package() -> None:
    name = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567-python3-libs-3.6.8-18.el7-x86_64"
    assert history.parse_yumdb(name) == InstalledPackage(
        name="python3-libs", version="3.6.8-18.el7", architecture="x86_64"
    )
    assert history.parse_yumdb("not-a-package") is None


REPOSITORIES = """\
[baseos]
name=CentOS $releasever
mirrorlist=http://mirror.example.org/?release=$releasever
gpgcheck=1

[own]
baseurl=https://anna:secret@packages.example.org/el8/ https://second.example.org/
[off]
baseurl=http://off.example.org/
enabled=0
[nothing]
name=no address
"""


def test_repositories_are_read_without_their_credentials() -> None:
    found = list(sources.parse_repositories(REPOSITORIES, signed=False))
    assert found == [
        sources.Repository("baseos", "http://mirror.example.org/?release=$releasever", True),
        sources.Repository("own", "https://packages.example.org/el8/", False),
    ]


def test_signatures_are_demanded_unless_the_patient_says_otherwise(tmp_path: Path) -> None:
    def tree(name: str, config: str, repository: str) -> bool:
        root = tmp_path / name
        (root / "etc/dnf").mkdir(parents=True)
        (root / "etc/yum.repos.d").mkdir()
        (root / "etc/dnf/dnf.conf").write_text(config)
        (root / "etc/yum.repos.d/a.repo").write_text(repository)
        with TargetRoot(root) as opened:
            return sources.probe_repositories(opened, PLACES)[1]

    enabled = "[a]\nbaseurl=http://a.example.org/\n"
    assert tree("nothing-said", "", "")
    assert tree("nothing-said-of-it", "[main]\n", enabled)
    assert tree("general", "[main]\ngpgcheck=1\n", enabled)
    assert not tree("generally-off", "[main]\ngpgcheck=False\n", enabled)
    assert tree("on-for-one", "[main]\ngpgcheck=0\n", enabled + "gpgcheck=1\n")
    assert not tree("off-for-all", "[main]\ngpgcheck=1\n", enabled + "gpgcheck=0\n")


def test_signatures_as_rpmkeys_tells_them() -> None:
    said = (
        "/p/good.rpm: digests signatures OK\n/p/none.rpm: digests SIGNATURES NOT OK\n"
        "/p/bad: name.rpm: DIGESTS NOT OK\nerror: /p/gone.rpm: open failed: No such file or directory\n"
    )
    found = sources.parse_checksig(said)
    assert found["/p/good.rpm"] and not found["/p/none.rpm"] and not found["/p/bad: name.rpm"]
    assert not found.get("/p/gone.rpm")


def test_offers_newest_first() -> None:
    said = "bash 0:5.2.15-1 x86_64\nbash 0:5.2.15-2 x86_64\nbind 32:9.11-3 x86_64\nnot an offer\n"
    assert [(o.package, o.version) for o in sources.parse_offers(said)] == [
        ("bind", "32:9.11-3"),
        ("bash", "5.2.15-2"),
        ("bash", "5.2.15-1"),
    ]


def test_what_releasever_stands_for() -> None:
    assert release_version("rocky", "8.9") == "8"
    assert release_version("centos", "7") == "7"
    assert release_version("fedora", "39") == "39"
    assert release_version("amzn", "2023") == "2023"
    assert release_version("openeuler", "22.03") == "22.03"


def test_the_shares_of_a_verification_hold_every_package_once() -> None:
    packages = [
        InstalledPackage(name=f"p{n}", version="1-1", architecture="x86_64", installed_bytes=n << 16)
        for n in range(100)
    ]
    shares = verification.shares(packages, 3)
    assert sorted(label for share in shares for label in share) == sorted(p.labels[-1] for p in packages)
    numbers = [[int(re.findall(r"\d+", label)[0]) for label in share] for share in shares]
    sizes = [sum(n + 1 for n in share) for share in numbers]
    assert max(sizes) < 1.1 * min(sizes)


ZYPP = """\
# 2026-11-24 10:00:00 glibc-2.31
2026-11-24 10:00:00|command|root@host|'zypper' 'install' 'less'|
2026-11-24 10:00:01|install|less|590-1.1|x86_64|root@host|repo-oss|0123|
2026-11-24 10:00:02|install|bash|4.4-9.14|x86_64||repo-oss|0123|
2026-11-24 10:00:02|install|kernel-default|5.14.21-1|x86_64||repo-oss|0123|
2026-11-25 10:00:02|install|kernel-default|5.14.21-2|x86_64||repo-oss|0123|
2026-11-25 10:00:02|install|bash|4.4-9.17|x86_64||repo-oss|0123|
2026-11-25 10:00:03|remove |less|590-1.1|x86_64|root@host|
"""


def test_what_is_installed_after_zyppers_history() -> None:
    assert {p.labels[-1] for p in suse.parse_history(ZYPP)} == {
        "bash-4.4-9.17.x86_64",
        "kernel-default-5.14.21-1.x86_64",
        "kernel-default-5.14.21-2.x86_64",
    }
