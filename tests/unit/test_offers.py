# SPDX-License-Identifier: GPL-3.0-or-later
"""What the package sources offer, and what they are asked for."""

from __future__ import annotations

from lab import facts as lab

from rescue_agent.diagnose import diagnose
from rescue_agent.model.facts import Archive, Facts, Offer
from rescue_agent.model.plan import Plan, Policy
from rescue_agent.planning import make_plan
from rescue_agent.probe.families.debian.offers import parse_madison, wanted_names

MADISON = """\
     libc6 | 2.36-9+deb12u14 | http://deb.debian.org/debian bookworm/main amd64 Packages
     libc6 | 2.36-9+deb12u10 | http://deb.debian.org/debian-security bookworm-security/main amd64 Packages
     libc6 | 2.36-9 | http://deb.debian.org/debian bookworm/main Sources
N: Unable to locate package gone
"""


def test_madison_is_read_without_sources_and_notes() -> None:
    assert parse_madison(MADISON) == (
        Offer(package="libc6", version="2.36-9+deb12u14", architecture="amd64"),
        Offer(package="libc6", version="2.36-9+deb12u10", architecture="amd64"),
    )
    assert parse_madison("") == ()


def test_only_what_needs_mending_and_is_not_at_hand_is_asked_for() -> None:
    facts = lab.with_missing_libc(lab.healthy())
    database = facts.systems[0].database
    assert database is not None
    assert wanted_names(database) == ("libc6",)
    facts = lab.with_archives(facts, lab.cached("libc6"))
    database = facts.systems[0].database
    assert database is not None
    assert wanted_names(database) == ()
    database = lab.healthy().systems[0].database
    assert database is not None
    assert wanted_names(database) == ()


def planned(facts: Facts) -> Plan:
    return make_plan(facts, diagnose(facts), Policy())


def said(plan: Plan) -> str:
    return " ".join([*(r.reason for r in plan.refusals), *(d.reason for d in plan.deferred)])


def test_a_version_that_is_gone_is_told_by_the_plan() -> None:
    facts = lab.with_database(lab.with_missing_libc(lab.healthy()), offers=())
    plan = planned(facts)
    assert not any(step.stage == "packages" for step in plan.steps)
    assert "offers it any more" in said(plan)


def test_sources_that_do_not_answer_are_told_by_the_plan() -> None:
    facts = lab.with_database(
        lab.with_missing_libc(lab.healthy()), sources_error="the configured sources do not answer: E: no DNS"
    )
    plan = planned(facts)
    assert not any(step.stage == "packages" for step in plan.steps)
    assert "do not answer" in said(plan)


def test_an_archive_at_hand_needs_no_source() -> None:
    archive: Archive = lab.cached("libc6")
    facts = lab.with_archives(lab.with_missing_libc(lab.healthy()), archive)
    plan = planned(lab.with_database(facts, offers=(), sources_error="no answer"))
    assert any(step.stage == "packages" for step in plan.steps)
