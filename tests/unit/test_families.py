# SPDX-License-Identifier: GPL-3.0-or-later
"""Package families: each is complete, and one more needs no change outside of its own modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from lab import facts as lab

from rescue_agent.diagnose import diagnose
from rescue_agent.model import families
from rescue_agent.model.plan import Policy
from rescue_agent.planning import families as managers
from rescue_agent.planning import make_plan
from rescue_agent.probe import families as probes
from rescue_agent.probe.os_release import family_of


def test_every_family_that_is_looked_at_can_be_mended_and_has_its_words() -> None:
    names = {manager.family for manager in managers.every_manager()}
    assert names == {found.family for found in probes.every_probe()} >= {"arch", "debian", "rhel", "suse"}
    for name in names:
        family = families.get_family(name)
        assert family.archive_suffix and family.fetch_tool and family.rebuild_advice, name
        assert family.tool_packages and family.owners, name


@pytest.mark.parametrize(
    ("release", "family"),
    [
        ({"ID": "centos"}, "rhel"),
        ({"ID": "rhel"}, "rhel"),
        ({"ID": "rocky"}, "rhel"),
        ({"ID": "almalinux"}, "rhel"),
        ({"ID": "ol"}, "rhel"),
        ({"ID": "fedora"}, "rhel"),
        ({"ID": "amzn"}, "rhel"),
        ({"ID": "openEuler"}, "rhel"),
        ({"ID": "anolis"}, "rhel"),
        ({"ID": "alinux"}, "rhel"),
        ({"ID": "something", "ID_LIKE": "rhel centos fedora"}, "rhel"),
    ],
)
def test_the_distributions_of_the_rpm_family(release: dict[str, str], family: str) -> None:
    assert family_of(release) == family


FIFTH = {
    "model": """
from rescue_agent.model.families import Family
FAMILY = Family(
    name="fifth", ids=frozenset({"fifth"}), managers=(("five", ()),), archive_suffix=".five",
    fetch_tool="five-get",
)
""",
    "planning": """
from rescue_agent.model.operation import Run
from rescue_agent.planning.families.debian import Apt


class Five(Apt):
    family = "fifth"

    def reinstall(self, case, system, supplies):
        return (Run(argv=("five", "--again", *(s.inside for s in supplies)), inside=True),)


MANAGER = Five()
""",
}


@pytest.fixture
def fifth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add modules of a fifth family beside those that are there."""
    caches = (families.every_family, managers.every_manager)
    for package, text in ((families, FIFTH["model"]), (managers, FIFTH["planning"])):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "fifth.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    for cached in caches:
        cached.cache_clear()
    yield
    for package in (families, managers):
        sys.modules.pop(f"{package.__name__}.fifth", None)
    for cached in caches:
        cached.cache_clear()


def test_a_fifth_family_is_found_by_being_there(fifth: None) -> None:
    assert family_of({"ID": "fifth"}) == "fifth"
    facts = lab.with_system(lab.with_missing_libc(lab.healthy()), family="fifth", package_manager="five")
    facts = lab.with_archives(facts, lab.cached("libc6"))
    made = make_plan(facts, diagnose(facts), Policy(network=False))
    assert msgspec.json.encode(made).count(b'"five","--again"') == 1
