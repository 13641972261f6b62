# SPDX-License-Identifier: GPL-3.0-or-later
"""What dpkg would do otherwise: diversions, excluded paths, configuration files; and hostile names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_agent.errors import UnsafePath
from rescue_agent.execute.package_rules import (
    Diversion,
    Rules,
    parse_conffiles,
    parse_control,
    parse_diversions,
    parse_path_rules,
)
from rescue_agent.execute.unpack import member_path

DIVERSIONS = "/sbin/reboot\n/sbin/reboot.no-molly-guard\nmolly-guard\n/bin/x\n/bin/x.local\n:\n/half\n"


def test_a_diverted_file_goes_where_the_administrator_put_it() -> None:
    rules = Rules(package="systemd-sysv", diversions=parse_diversions(DIVERSIONS))
    assert rules.diversions[0] == Diversion("/sbin/reboot", "/sbin/reboot.no-molly-guard", "molly-guard")
    assert len(rules.diversions) == 2
    assert rules.diverted("/sbin/reboot") == "/sbin/reboot.no-molly-guard"
    assert rules.diverted("/bin/x") == "/bin/x.local"
    assert rules.diverted("/bin/y") == "/bin/y"


def test_the_diverting_package_keeps_its_own_file() -> None:
    rules = Rules(package="molly-guard", diversions=parse_diversions(DIVERSIONS))
    assert rules.diverted("/sbin/reboot") == "/sbin/reboot"


def test_the_last_path_rule_that_fits_decides() -> None:
    rules = Rules(
        path_rules=parse_path_rules(
            "# comment\nno-debsig\npath-exclude=/usr/share/doc/*\npath-include /usr/share/doc/*/copyright\n"
            'path-exclude="/usr/share/man/*"\n'
        )
    )
    assert rules.excluded("/usr/share/doc/bash/README")
    assert not rules.excluded("/usr/share/doc/bash/copyright")
    assert rules.excluded("/usr/share/man/man1/bash.1.gz")
    assert not rules.excluded("/usr/bin/bash")


def test_conffiles_without_those_that_are_to_go() -> None:
    assert parse_conffiles("/etc/a\nremove-on-upgrade /etc/b\n\n/etc/c \n") == {"/etc/a", "/etc/c"}


def test_the_package_name() -> None:
    assert parse_control("Package: libc6\nVersion: 2.36\n") == "libc6"
    assert parse_control("nothing\n") == ""


@pytest.mark.parametrize(
    ("name", "path"),
    [("./", "/"), (".", "/"), ("./usr/bin/x", "/usr/bin/x"), ("usr/bin/", "/usr/bin"), ("./a//b", "/a/b")],
)
def test_member_names(name: str, path: str) -> None:
    assert member_path(name) == path


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "./usr/../../etc/passwd", "a/..", "//x"])
def test_member_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(UnsafePath):
        member_path(name)


@given(st.text(alphabet="./ab", max_size=12))
def test_a_member_lies_below_the_root_or_is_refused(name: str) -> None:
    try:
        path = member_path(name)
    except UnsafePath:
        return
    assert path.startswith("/")
    assert ".." not in path.split("/")
